/* Models and sessions from inside. */
#ifndef RETNET_SESSION_H
#define RETNET_SESSION_H

#include <stdatomic.h>

#include "engine.h"
#include "format.h"
#include "platform.h"

struct Tokenizer;

struct retnet_model {
    atomic_int users; /* sessions and decoders on it, and who opened it */
    Model model;
    Mapping mapping; /* data NULL: somebody else's memory */
    const uint8_t *file; /* the packed file, or NULL for a table and weights */
    struct Tokenizer *tokenizer; /* NULL: none */
    retnet_generation_record generation;
    const int32_t *ends; /* [generation.end_count] */
    const retnet_section *sections;
    int32_t section_count;
    uint64_t weight_bytes;
    uint8_t fingerprint[RETNET_FINGERPRINT_BYTES];
};

struct retnet_session {
    atomic_int busy; /* a call is under way */
    retnet_model *model;
    Engine *engine;
    float *states;       /* [layers, heads, key_dim, value_dim] */
    float *logits;       /* [vocab_size] */
    uint8_t *seen;       /* [vocab_size], 1: in the sequence */
    int64_t position;
    int has_logits;
};

retnet_model *hold_model(retnet_model *model); /* one user more */

uint64_t state_floats(const Model *model); /* of all layers */
uint64_t layer_state_floats(const Model *model);

/* 0 where another call is under way in the session. */
int begin_call(retnet_session *session);
void end_call(retnet_session *session);

/* What the functions of retnet.h do, between begin_call and end_call. */
retnet_status feed_tokens(retnet_session *session, const int32_t *tokens, int64_t count);
retnet_status check_feed(const retnet_session *session, const int32_t *tokens, int64_t count);
int all_finite_floats(const float *x, uint64_t count);

#endif
