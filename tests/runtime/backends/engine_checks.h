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

/* A sequence: its states, and the last logits. */
typedef struct {
    Floats states[SMALL_LAYERS];
    float *logits;
    const ModelPlan *plan;
} Run;

static inline Run new_run(const ModelPlan *p) {
    Run r = {.plan = p, .logits = calloc((size_t)p->vocab_size, sizeof(float))};
    const size_t n = (size_t)state_floats(p);
    for (int i = 0; i < p->layer_count; i++) {
        r.states[i] = (Floats){calloc(n, sizeof(float)), n};
        for (size_t j = 0; j < n; j++) r.states[i].data[j] = (float)((int)(j * 7 % 11) - 5) / 9;
    }
    return r;
}

static inline void free_run(Run *r) {
    for (int i = 0; i < r->plan->layer_count; i++) free(r->states[i].data);
    free(r->logits);
}

static inline int feed(Engine *engine, Run *r, const int64_t *tokens, int64_t count, int64_t position) {
    return retnet_run(engine, tokens, count, position, r->states, r->plan->layer_count, r->logits,
                      (uint64_t)r->plan->vocab_size);
}

static inline int same_bits(const Run *a, const Run *b) {
    const ModelPlan *p = a->plan;
    for (int i = 0; i < p->layer_count; i++)
        if (memcmp(a->states[i].data, b->states[i].data, sizeof(float) * a->states[i].count))
            return 0;
    return !memcmp(a->logits, b->logits, sizeof(float) * (size_t)p->vocab_size);
}

#endif
