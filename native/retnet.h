/* A RetNet's step and prefill on quantized weights that stay where they are. */
#ifndef RETNET_H
#define RETNET_H

#include "model.h"

#define EXPORTED __attribute__((visibility("default")))

typedef struct Engine Engine;

/* What a call's time goes into; "between" is norms, activations, rounding and the embedding. */
enum {
    RETNET_QKVG,
    RETNET_RETENTION,
    RETNET_OUT,
    RETNET_INNER,
    RETNET_DOWN,
    RETNET_HEAD,
    RETNET_OTHER,
    RETNET_STAGES
};

/* `model` is copied; what it points to must outlive the engine. kernels: "avx512", "avx2", "neon",
 * "plain", or NULL for the best. NULL: out of memory or threads, or kernels that this CPU lacks. */
EXPORTED Engine *retnet_new(const Model *model, int threads, const char *kernels);
EXPORTED void retnet_free(Engine *engine);

/* Feed `count` tokens at `position`: states ([heads, key_dim, value_dim] of each layer) are
 * updated in place, logits [rows of the head] are the last token's. 0, or 1: out of memory. */
EXPORTED int retnet_run(Engine *engine, const int64_t *tokens, int count, int64_t position,
                        float *const *states, float *logits);

/* The name of the kernels that an engine runs. */
EXPORTED const char *retnet_kernels(const Engine *engine);

/* Seconds that all calls so far have spent in each stage. */
EXPORTED void retnet_seconds(const Engine *engine, double seconds[RETNET_STAGES]);

#endif
