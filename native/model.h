/* A model as the kernels see it: pointers to numbers that `check_plan` (table.c) has looked at. */
#ifndef RETNET_MODEL_H
#define RETNET_MODEL_H

#include <stdint.h>

/* Products of two widths, and of one and a number of bits, fit into what they are computed in. */
enum { MOST_LAYERS = 1024, MOST_HEADS = 1024, MOST_WIDTH = 1 << 24 };

/* A weight matrix in blocks along its rows, as ONNX Runtime's MatMulNBits stores it:
 * w[n][k] = scales[n][k / block] * (code[n][k] - zero), codes of 8 or 4 bits (the low half first).
 * columns: the inputs, rounded up to whole blocks; what stands for none meets an activation of 0.
 * zeros: the zero points, packed like codes with every row padded to a byte; NULL: 2^(bits-1). */
typedef struct {
    const uint8_t *codes;
    const void *scales;
    const uint8_t *zeros;
    int32_t rows, inputs, columns, bits, block;
    int32_t half_scales; /* scales are float16, else float32 */
} Matrix;

/* head_norm: [value_dim]; the other norms: [d_model]. */
typedef struct {
    const float *retention_norm, *head_norm, *ffn_norm;
    Matrix qkvg, out, inner, down;
} Layer;

/* frequencies: theta / (2 pi) of each pair of key channels, [key_dim / 2]. */
typedef struct {
    int32_t layer_count, d_model, heads, key_dim, value_dim, ffn_dim, vocab_size;
    int32_t gated, gelu, eps_z_n;
    float norm_eps, head_norm_eps;
    const float *final_norm;
    const double *gammas, *frequencies;
    Matrix embedding, head;
    const Layer *layers;
} Model;

#endif
