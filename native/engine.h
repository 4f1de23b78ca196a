/* Computes steps and prompts of a model: threads, buffers, kernels. One caller at a time, which
 * whoever calls sees to (session.c). */
#ifndef RETNET_ENGINE_H
#define RETNET_ENGINE_H

#include "model.h"
#include "retnet.h"

typedef struct Engine Engine;

/* An engine of a checked model, which must outlive it, into `engine`; NULL there and a status else:
 * RETNET_BAD_THREADS, RETNET_NO_KERNELS, RETNET_NO_MEMORY. kernels: a name, or NULL for the best. */
int engine_new(const Model *model, int threads, const char *kernels, Engine **engine);
void engine_free(Engine *engine);

/* Feed 1 to RETNET_MOST_TOKENS checked tokens at `position`: states ([heads, key_dim, value_dim] of
 * each layer, one after the other) are updated in place, logits [vocab_size] are the last token's.
 * RETNET_OK, or RETNET_NO_MEMORY, which changes nothing. */
int engine_run(Engine *engine, const int32_t *tokens, int count, int64_t position, float *states,
               float *logits);

int engine_threads(const Engine *engine);
const char *engine_kernels(const Engine *engine);
const double *engine_seconds(const Engine *engine); /* [RETNET_STAGES] */

#endif
