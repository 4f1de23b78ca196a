/* A model's plan in memory: the records of its table (format.h), and the two buffers that they
 * point into. Nobody has looked at it yet; `check_plan` (table.h) does. */
#ifndef RETNET_PLAN_H
#define RETNET_PLAN_H

#include "format.h"

/* Memory, and how many bytes it has. */
typedef struct {
    const void *data;
    uint64_t size;
} Bytes;

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

#endif
