/* A RetNet's step and prefill on quantized weights that stay where they are.
 *
 * Nothing that is handed over is trusted: a plan, a call and all sizes are checked here, whatever
 * the caller has looked at before. (runtime/backends/native/library.py has the same structures for
 * ctypes.) */
#ifndef RETNET_H
#define RETNET_H

#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

enum {
    RETNET_MOST_THREADS = 256,
    RETNET_MOST_TOKENS = 4096, /* of a call */
};

/* What functions return. */
enum {
    RETNET_OK,
    RETNET_NO_MEMORY, /* or no threads */
    RETNET_BAD_PLAN,
    RETNET_BAD_THREADS, /* not 1 to RETNET_MOST_THREADS */
    RETNET_NO_KERNELS,  /* this CPU lacks them */
    RETNET_BUSY,        /* another thread's call is under way: nothing was done */
    RETNET_BAD_COUNT,   /* not 1 to RETNET_MOST_TOKENS tokens */
    RETNET_BAD_TOKEN,   /* not 0 to vocab_size - 1 */
    RETNET_BAD_POSITION, /* negative, or too large to be counted on from */
    RETNET_BAD_BUFFER,  /* a state's or the logits' is missing, askew, or of another size */
};

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

/* Memory, and how many bytes it has. */
typedef struct {
    const void *data;
    uint64_t size;
} Bytes;

/* `size` bytes at `offset` of the weights, or where `own` of what the plan brings along. */
typedef struct {
    uint64_t offset, size;
    int64_t own;
} Place;

/* W [rows, inputs] in blocks along its inputs, as `Matrix` in model.h has it. codes: [rows, blocks,
 * block * bits / 8] bytes; scales: [rows, blocks]; zeros: packed like codes, each row padded to a
 * byte, only looked at where own_zeros. */
typedef struct {
    Place codes, scales, zeros;
    int32_t rows, inputs, bits, block, half_scales, own_zeros;
} MatrixPlan;

typedef struct {
    Place retention_norm, head_norm, ffn_norm;
    MatrixPlan qkvg, out, inner, down;
} LayerPlan;

/* layers: [layer_plans]; gammas: [gamma_count], one a head; frequencies: theta / (2 pi),
 * [frequency_count], one a pair of key channels. */
typedef struct {
    Bytes weights, own;
    const double *gammas, *frequencies;
    const LayerPlan *layers;
    MatrixPlan embedding, head;
    Place final_norm;
    int32_t layer_count, d_model, heads, key_dim, value_dim, ffn_dim, vocab_size;
    int32_t layer_plans, gamma_count, frequency_count;
    int32_t gated, gelu, eps_z_n;
    float norm_eps, head_norm_eps;
} ModelPlan;

/* `count` float32 numbers. */
typedef struct {
    float *data;
    uint64_t count;
} Floats;

typedef struct Engine Engine;

/* An engine into `engine`; NULL there and a status else, with a sentence in `error` (error_size
 * bytes, ended by 0) for RETNET_BAD_PLAN. Weights and `own` must outlive the engine and stay what
 * they are; all else is copied. kernels: "avx512", "avx2", "neon", "plain", or NULL for the best. */
EXPORTED int retnet_new(const ModelPlan *plan, int threads, const char *kernels, Engine **engine,
                        char *error, size_t error_size);

/* RETNET_BUSY, and nothing is freed, while a call is under way. */
EXPORTED int retnet_free(Engine *engine);

/* Feed `count` tokens at `position`: states ([heads, key_dim, value_dim] of each layer) are updated
 * in place, logits [vocab_size] are the last token's. Whatever is not RETNET_OK changes nothing.
 * One call at a time: a second thread's gets RETNET_BUSY. */
EXPORTED int retnet_run(Engine *engine, const int64_t *tokens, int64_t count, int64_t position,
                        const Floats *states, int32_t state_count, float *logits,
                        uint64_t logit_count);

/* The name of the kernels that an engine runs. */
EXPORTED const char *retnet_kernels(const Engine *engine);

/* Seconds that all calls so far have spent in each stage; RETNET_BUSY while one is under way. */
EXPORTED int retnet_seconds(Engine *engine, double seconds[RETNET_STAGES]);

#endif
