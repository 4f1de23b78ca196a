/* What the checks of the engine have in common: who runs what on a small model. */
#ifndef ENGINE_CHECKS_H
#define ENGINE_CHECKS_H

#include <stdio.h>

#include "small_model.h"

static int failures = 0;

static inline void expect(int holds, const char *what, const char *of) {
    if (holds) return;
    failures++;
    printf("%s: %s\n", of, what);
}

static const Shape BASE = {.layers = 2, .d_model = 48, .heads = 2, .key_dim = 10, .value_dim = 14,
                           .ffn_dim = 37, .vocab = 61, .gated = 1, .norm_eps = 1e-5f,
                           .head_norm_eps = 1e-5f, .bits = 8, .block = 32};

/* The model of a plan whose parts are taken as they are: its table, and the model that was opened. */
typedef struct {
    uint64_t *table;
    retnet_model *model;
} Opened;

static inline retnet_status open_small(const SmallModel *m, Opened *o, retnet_error *error) {
    static const uint8_t fingerprint[RETNET_FINGERPRINT_BYTES] = {1, 2, 3};
    uint64_t size;
    o->table = small_table(m, &size);
    return retnet_model_open_parts(o->table, size, m->weights, m->plan.weights.size, fingerprint,
                                   &o->model, error);
}

static inline void close_small(Opened *o) {
    retnet_model_close(o->model);
    free(o->table);
}

/* A sequence: a session, and what it is after the last call. */
typedef struct {
    retnet_session *session;
    const ModelPlan *plan;
    float *states; /* of all layers */
    const float *logits;
} Run;

static inline uint64_t all_states(const ModelPlan *p) {
    return (uint64_t)p->layer_count * (uint64_t)state_floats(p);
}

/* At `position`, from states that are not 0. session NULL: the kernels are not there. */
static inline Run new_run(retnet_model *model, const ModelPlan *p, int threads, const char *kernels,
                          int64_t position) {
    const uint64_t n = all_states(p);
    Run r = {.plan = p, .states = malloc(n * sizeof(float))};
    for (uint64_t j = 0; j < n; j++)
        r.states[j] = (float)((int)(j % (uint64_t)state_floats(p) * 7 % 11) - 5) / 9;
    if (!retnet_session_new(model, threads, kernels, &r.session, NULL))
        expect(!retnet_session_set_states(r.session, r.states, n * sizeof(float), position, NULL, 0),
               "states", "a new run");
    return r;
}

static inline void free_run(Run *r) {
    free(r->states);
    retnet_session_free(r->session);
}

static inline retnet_status feed(Run *r, const int32_t *tokens, int64_t count) {
    const retnet_status status = retnet_session_feed(r->session, tokens, count);
    r->logits = retnet_session_logits(r->session);
    retnet_session_get_states(r->session, r->states, all_states(r->plan) * sizeof(float));
    return status;
}

static inline int same_bits(const Run *a, const Run *b) {
    const ModelPlan *p = a->plan;
    return retnet_session_position(a->session) == retnet_session_position(b->session) &&
           !memcmp(a->states, b->states, sizeof(float) * all_states(p)) &&
           !memcmp(a->logits, b->logits, sizeof(float) * (size_t)p->vocab_size);
}

#endif
