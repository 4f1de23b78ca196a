/* Kernels by instruction set, chosen when the program runs. */
#ifndef RETNET_KERNELS_H
#define RETNET_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

enum {
    COLUMN_ALIGN = 32,      /* columns come in multiples of it */
    BLOCK_ALIGN = 16,     /* what is there for each block of a row is padded to a multiple of it */
    MAX_I32_LANES = 16,  /* lanes of int32 that any kernel's vector has */
    PANEL_ROWS = 16, /* rows that a thread multiplies by several tokens at a time */
};

static inline int padded_blocks(int blocks) {
    return (blocks + BLOCK_ALIGN - 1) / BLOCK_ALIGN * BLOCK_ALIGN;
}

/* Tokens as a matrix asks for them, [token][…], x = scale * code: codes int16 with one scale (the
 * first) for 8-bit weights, int8 with a scale a block for 4-bit ones. Of each block: the sum of its
 * codes (times its scale), and what a product with it begins with (the part of a zero point in the
 * middle), a vector of the kernels. Scales and sums are padded with zeros. How codes lie, and what
 * of acc_init is used, is the kernels' own affair (kernels_dot_impl.h has it otherwise). */
typedef struct {
    int16_t *codes;
    int32_t *acc_init;
    float *scales, *sums;
} Activations;

/* What each does is written in kernels_impl.h. int8_limit: the largest code of an activation that
 * meets 8-bit weights. */
typedef struct {
    const char *name;
    int (*supported)(void);
    int int8_limit;
    void (*gemv)(const Matrix *m, int first, int last, const Activations *x, float *y, int add,
                 void *scratch);
    void (*gemm)(const Matrix *m, int first, int last, const Activations *x, int tokens,
                           float *y, int add, void *scratch);
    void (*quantize)(const Matrix *m, const float *x, Activations *out, int token, void *scratch);
    void (*embedding_row)(const Matrix *m, size_t row, float *out, void *scratch);
    void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *y);
    void (*activate)(const float *gate, const float *y, int n, int gelu, float *out);
    void (*retention_step)(float *state, const float *q, const float *k, const float *v,
                           float gamma, int keys, int values, float *o);
} Kernels;

const Kernels *find_kernels(const char *name); /* NULL: the best; NULL where there are none */

#endif
