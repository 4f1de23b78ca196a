/* Models and sessions from inside. */
#ifndef RETNET_SESSION_H
#define RETNET_SESSION_H

#include <stdatomic.h>

#include "engine.h"
#include "format.h"
#include "platform.h"

struct retnet_model {
    atomic_int users; /* sessions on it, and who opened it */
    Model model;
    Mapping mapping; /* data NULL: somebody else's memory */
    const uint8_t *file; /* the packed file, or NULL for a table and weights */
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

/* The beginning of a call: no error so far, or RETNET_BUSY and its sentence where another one is
 * under way in the session. */
retnet_status begin_call_or_fail(retnet_session *session, retnet_error *error);
void end_call(retnet_session *session);

int all_finite_floats(const float *x, uint64_t count);

#endif
