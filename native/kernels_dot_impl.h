/* Products on ARM processors that sum four products of bytes at once. The header isa_*.h that was
 * included before gives NAME and TARGET, CODE_OFFSET (what `operand` takes off a code of 8 bits),
 * `dot` and what a tile is made with; all else is that of NEON.
 *
 * Codes of activations of 16 bits lie in two halves of 8, x = 256 * high + low: all columns of the
 * low halves, then all of the high ones. Codes of 4-bit weights are unpacked 32 at a time, so of
 * every 32 activations the even ones come first. In a block everything is an integer and exact
 * (256 columns of 255 * 32639 stay below 2^31): a block becomes one float, and then one fused
 * multiply-add. So the order within a block is free, and `gemm` gives the bits of `gemv`. */

/* The sums of the lanes of four vectors. */
TARGET static inline int32x4_t NAME(sums_of_lanes)(const int32x4_t v[DOT_ROWS]) {
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

/* sums + what blocks of four rows add: the products of the halves times the blocks' steps. */
TARGET static inline float32x4_t NAME(add_block)(float32x4_t sums, int32x4_t low, int32x4_t high,
                                                 float32x4_t steps) {
    const int32x4_t all = vaddq_s32(low, vshlq_n_s32(high, 8));
    return vfmaq_f32(sums, vcvtq_f32_s32(all), steps);
}

/* Four rows and one token while their blocks are gone through: where the next one's codes and halves
 * of activations lie, its steps and what it begins with. */
typedef struct {
    const uint8_t *rows[DOT_ROWS];
    const int8_t *low, *high;
    const float *steps;
    const int32_t *init;
} NAME(Cursor);

/* sums + what the next block adds. bits and block are the matrix's, and constants. */
TARGET static inline __attribute__((always_inline)) float32x4_t
NAME(gemv_block)(NAME(Cursor) *at, float32x4_t sums, const int bits, const int block) {
    int32x4_t low[DOT_ROWS], high[DOT_ROWS];
    UNROLL for (int r = 0; r < DOT_ROWS; r++) {
        DOT_BARRIER; /* read again: what reads has time left, what would copy a register has none */
        low[r] = vld1q_s32(at->init);
        high[r] = vdupq_n_s32(0);
    }
    UNROLL for (int j = 0; j < block; j += DOT_COLUMNS) {
        DOT_BARRIER; /* GCC would read a whole block first, more than there are registers for */
        const int8x16_t first = vld1q_s8(at->low + j), second = vld1q_s8(at->low + j + 16);
        if (bits == 8) {
            const int8x16_t third = vld1q_s8(at->high + j), fourth = vld1q_s8(at->high + j + 16);
            UNROLL for (int r = 0; r < DOT_ROWS; r++) {
                const uint8x16_t w = NAME(operand)(vld1q_u8(at->rows[r] + j));
                const uint8x16_t v = NAME(operand)(vld1q_u8(at->rows[r] + j + 16));
                low[r] = NAME(dot)(NAME(dot)(low[r], w, first), v, second);
                high[r] = NAME(dot)(NAME(dot)(high[r], w, third), v, fourth);
            }
        } else UNROLL for (int r = 0; r < DOT_ROWS; r++) {
                const uint8x16_t both = vld1q_u8(at->rows[r] + j / 2);
                low[r] = NAME(dot)(low[r], vandq_u8(both, vdupq_n_u8(15)), first);
                low[r] = NAME(dot)(low[r], vshrq_n_u8(both, 4), second);
            }
    }
    const int32x4_t highs = bits == 8 ? NAME(sums_of_lanes)(high) : vdupq_n_s32(0);
    sums = NAME(add_block)(sums, NAME(sums_of_lanes)(low), highs, vld1q_f32(at->steps));
    UNROLL for (int r = 0; r < DOT_ROWS; r++) at->rows[r] += block * bits / 8;
    at->low += block, at->high += block, at->steps += DOT_ROWS, at->init += DOT_INIT;
    return sums;
}

/* The sums over blocks of four rows times one token, some at a time that are a cache line or more
 * of each row. */
TARGET static inline __attribute__((always_inline)) float32x4_t NAME(gemv_blocks)(
    const Matrix *m, const int rows[DOT_ROWS], const Activations *x, const float *steps,
    const int bits, const int block) {
    const int columns = m->columns, blocks = columns / block, bytes = block * bits / 8;
    const int together = bytes < CACHE_LINE ? CACHE_LINE / bytes : 1;
    NAME(Cursor) at = {.low = int8_codes(x), .steps = steps, .init = x->acc_init};
    at.high = at.low + columns;
    UNROLL for (int r = 0; r < DOT_ROWS; r++) at.rows[r] =
        m->codes + (size_t)rows[r] * (size_t)(columns * bits / 8);
    float32x4_t sums = vdupq_n_f32(0);
    int b = 0;
    for (; b + together <= blocks; b += together) {
        LOOP_MARK(bits, block);
        UNROLL for (int r = 0; r < DOT_ROWS; r++) UNROLL for (int ahead = 0;
                                                              ahead < together * bytes;
                                                              ahead += CACHE_LINE)
            __builtin_prefetch(at.rows[r] + ahead + PREFETCH_BYTES);
        UNROLL for (int i = 0; i < together; i++) sums = NAME(gemv_block)(&at, sums, bits, block);
    }
    for (; b < blocks; b++) sums = NAME(gemv_block)(&at, sums, bits, block);
    return sums;
}

/* Every size of a block that table.c lets pass has loops of its own. */
TARGET static inline __attribute__((always_inline)) float32x4_t NAME(gemv_bits)(
    const Matrix *m, const int rows[DOT_ROWS], const Activations *x, const float *steps,
    const int bits) {
    switch (m->block) {
    case 32: return NAME(gemv_blocks)(m, rows, x, steps, bits, 32);
    case 64: return NAME(gemv_blocks)(m, rows, x, steps, bits, 64);
    case 128: return NAME(gemv_blocks)(m, rows, x, steps, bits, 128);
    default: return NAME(gemv_blocks)(m, rows, x, steps, bits, 256);
    }
}

/* Four rows times one token, into y. */
TARGET static __attribute__((noinline)) void NAME(gemv_rows)(const Matrix *m,
                                                             const int rows[DOT_ROWS],
                                                             const Activations *x,
                                                             float y[DOT_ROWS], float *steps) {
    float of_zeros[DOT_ROWS];
    arm_block_steps(m, rows, x, steps, of_zeros);
    vst1q_f32(y, m->bits == 8 ? NAME(gemv_bits)(m, rows, x, steps, 8)
                              : NAME(gemv_bits)(m, rows, x, steps, 4));
    for (int r = 0; r < DOT_ROWS; r++)
        y[r] = (y[r] - of_zeros[r]) * (m->bits == 8 ? x->scales[0] : 1);
}

/* As for the other instruction sets: rows from far places, each read straight on. What is left at
 * the end, fewer than four, are rows side by side, the last of them several times. */
TARGET static void NAME(gemv)(const Matrix *m, int first, int last, const Activations *x, float *y,
                              int add, void *scratch) {
    const int apart = (last - first) / DOT_ROWS, left = first + DOT_ROWS * apart;
    for (int i = 0; i < apart + (left < last); i++) {
        int rows[DOT_ROWS];
        float found[DOT_ROWS];
        for (int r = 0; r < DOT_ROWS; r++) {
            const int beside = left + r < last ? left + r : last - 1;
            rows[r] = i < apart ? first + i + r * apart : beside;
        }
        NAME(gemv_rows)(m, rows, x, found, scratch);
        for (int r = 0; r < (i < apart ? DOT_ROWS : last - left); r++) {
            float *to = y + rows[r];
            *to = found[r] + (add ? *to : 0);
        }
    }
}

/* What a tile multiplies with: codes as `pack` lays them, four rows after four rows; scales
 * [blocks, PANEL_ROWS]; scales times the rows' own zero points [PANEL_ROWS, padded blocks]. */
typedef struct {
    uint8_t *codes;
    float *scales, *scaled_zero_points;
} NAME(Panel);

TARGET static NAME(Panel) NAME(panel)(const Matrix *m, int first, int last, void *scratch) {
    const int columns = m->columns, blocks = columns / m->block, stride = padded_blocks(blocks);
    NAME(Panel) c = {.codes = scratch};
    c.scales = (float *)(void *)(c.codes + (size_t)PANEL_ROWS * (size_t)columns);
    c.scaled_zero_points = c.scales + (size_t)PANEL_ROWS * (size_t)stride;
    const size_t row_bytes = (size_t)columns * (size_t)m->bits / 8;
    for (int i = 0; i < PANEL_ROWS; i += DOT_ROWS) {
        size_t rows[DOT_ROWS];
        for (int r = 0; r < DOT_ROWS; r++)
            rows[r] = (size_t)(first + i + r < last ? first + i + r : last - 1);
        uint8_t *to = c.codes + (size_t)i * (size_t)columns;
        for (int k = 0; k < columns; k += DOT_COLUMNS, to += DOT_ROWS * DOT_COLUMNS) {
            uint8x16_t one[DOT_ROWS], two[DOT_ROWS];
            for (int r = 0; r < DOT_ROWS; r++) {
                const uint8_t *codes = m->codes + rows[r] * row_bytes + k * m->bits / 8;
                const uint8x16_t all = vld1q_u8(codes);
                one[r] = m->bits == 8 ? NAME(operand)(all) : vandq_u8(all, vdupq_n_u8(15));
                two[r] = m->bits == 8 ? NAME(operand)(vld1q_u8(codes + 16)) : vshrq_n_u8(all, 4);
            }
            NAME(pack)(to, one);
            NAME(pack)(to + DOT_ROWS * DOT_COLUMNS / 2, two);
        }
        for (int r = 0; r < DOT_ROWS; r++)
            for (int b = 0; b < blocks; b += NEON_LANES) {
                const VecF32_neon scales = scales_neon(m, rows[r], b);
                float each[NEON_LANES];
                store_f32_neon(each, scales);
                for (int j = 0; j < NEON_LANES && b + j < blocks; j++)
                    c.scales[(b + j) * PANEL_ROWS + i + r] = each[j];
                if (m->zeros)
                    store_f32_neon(c.scaled_zero_points + (i + r) * stride + b,
                                   mul_neon(scales, zeros_neon(m, rows[r], b)));
            }
    }
    return c;
}

/* DOT_TILE rows of a panel from `row` on times DOT_TOKENS tokens. Every sum is made as `gemv_rows`
 * makes it, but for the order within a block. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(
    const Matrix *m, const NAME(Panel) *c, int row, const Activations x[DOT_TOKENS],
    float out[DOT_TOKENS][DOT_TILE], const int bits) {
    enum { GROUPS = DOT_TILE / DOT_ROWS };
    const int columns = m->columns, block = m->block, blocks = columns / block;
    const uint8_t *codes[GROUPS];
    float32x4_t sums[GROUPS][DOT_TOKENS];
    UNROLL for (int g = 0; g < GROUPS; g++) {
        codes[g] = c->codes + (size_t)(row + g * DOT_ROWS) * (size_t)columns;
        UNROLL for (int t = 0; t < DOT_TOKENS; t++) sums[g][t] = vdupq_n_f32(0);
    }
    for (int b = 0, k = 0; b < blocks; b++) {
        int32x4_t low[GROUPS][DOT_TOKENS], high[GROUPS][DOT_TOKENS];
        UNROLL for (int g = 0; g < GROUPS; g++) UNROLL for (int t = 0; t < DOT_TOKENS; t++)
            low[g][t] = high[g][t] = vdupq_n_s32(0);
        for (const int end = k + block; k < end; k += 16) {
            LOOP_MARK(bits, 0);
            int8x16_t v[DOT_TOKENS];
            UNROLL for (int t = 0; t < DOT_TOKENS; t++) v[t] = vld1q_s8(int8_codes(&x[t]) + k);
            UNROLL for (int g = 0; g < GROUPS; g++)
                NAME(tile_step)(low[g], codes[g] + DOT_ROWS * k, v);
            if (bits == 4) continue;
            UNROLL for (int t = 0; t < DOT_TOKENS; t++) v[t] =
                vld1q_s8(int8_codes(&x[t]) + columns + k);
            UNROLL for (int g = 0; g < GROUPS; g++)
                NAME(tile_step)(high[g], codes[g] + DOT_ROWS * k, v);
        }
        UNROLL for (int g = 0; g < GROUPS; g++) {
            NAME(rows_of_tokens)(low[g]);
            if (bits == 8) NAME(rows_of_tokens)(high[g]);
            UNROLL for (int t = 0; t < DOT_TOKENS; t++) {
                float32x4_t steps = vld1q_f32(c->scales + b * PANEL_ROWS + row + g * DOT_ROWS);
                if (bits == 4) steps = vmulq_f32(steps, vdupq_n_f32(x[t].scales[b]));
                const int32x4_t init = vdupq_n_s32(x[t].acc_init[b * DOT_INIT]);
                sums[g][t] = NAME(add_block)(sums[g][t], vaddq_s32(low[g][t], init), high[g][t],
                                             steps);
            }
        }
    }
    for (int t = 0; t < DOT_TOKENS; t++)
        UNROLL for (int g = 0; g < GROUPS; g++) vst1q_f32(out[t] + g * DOT_ROWS, sums[g][t]);
    for (int i = 0; i < DOT_TILE * DOT_TOKENS; i++) {
        const int t = i / DOT_TILE, r = i % DOT_TILE;
        const float *of_row = c->scaled_zero_points + (row + r) * padded_blocks(blocks);
        VecF32_neon part = zero_f32_neon();
        for (int b = 0; m->zeros && b < blocks; b += NEON_LANES)
            part = fmadd_neon(part, load_f32_neon(of_row + b), load_f32_neon(x[t].sums + b));
        const float of_zeros = m->zeros ? reduce_add_neon(part) : 0;
        out[t][r] = (out[t][r] - of_zeros) * (bits == 8 ? x[t].scales[0] : 1);
    }
}

/* Rows first … last - 1 times `tokens` tokens; y [tokens, rows]. */
TARGET static void NAME(gemm)(const Matrix *m, int first, int last, const Activations *x,
                              int tokens, float *y, int add, void *scratch) {
    const NAME(Panel) panel = NAME(panel)(m, first, last, scratch);
    for (int token = 0; token < tokens; token += DOT_TOKENS) {
        Activations some[DOT_TOKENS];
        for (int t = 0; t < DOT_TOKENS; t++)
            some[t] = token_activations(m, x, token + t < tokens ? token + t : token);
        for (int row = first; row < last; row += DOT_TILE) {
            float out[DOT_TOKENS][DOT_TILE];
            if (m->bits == 8) NAME(tile)(m, &panel, row - first, some, out, 8);
            else NAME(tile)(m, &panel, row - first, some, out, 4);
            for (int t = 0; t < DOT_TOKENS && token + t < tokens; t++)
                for (int r = 0; r < DOT_TILE && row + r < last; r++) {
                    float *to = y + (size_t)(token + t) * (size_t)m->rows + row + r;
                    *to = out[t][r] + (add ? *to : 0);
                }
        }
    }
}

/* As `quantize` of the other instruction sets, in this layout and with codes of 16 bits that are at
 * most SPLIT_LIMIT in size, so that the high half fits into a byte. */
TARGET static void NAME(quantize)(const Matrix *m, const float *x, Activations *out, int token,
                                  void *scratch) {
    const int columns = m->columns, block = m->block, blocks = columns / block;
    if (m->inputs < columns) {
        memcpy(scratch, x, sizeof(float) * (size_t)m->inputs);
        memset((float *)scratch + m->inputs, 0, sizeof(float) * (size_t)(columns - m->inputs));
        x = scratch;
    }
    const Activations to = token_activations(m, out, token);
    for (int i = 0; i < padded_blocks(blocks); i++) to.scales[i] = to.sums[i] = 0;
    memset(to.acc_init, 0, sizeof(int32_t) * (size_t)(DOT_INIT * blocks));
    const float of_all = m->bits == 8 ? absmax_neon(x, columns) : 0;
    for (int b = 0; b < blocks; b++) {
        const float largest = m->bits == 8 ? of_all : absmax_neon(x + b * block, block);
        const float most = m->bits == 8 ? (float)SPLIT_LIMIT : 127.0f, scale = largest / most;
        const float inverse = largest > TINY && scale < INFINITY ? most / largest : 0;
        int32_t total = 0;
        for (int i = b * block; i < (b + 1) * block; i += COLUMN_ALIGN) {
            int16_t codes[COLUMN_ALIGN] = {0};
            int8_t *first = int8_codes(&to) + i, *second = first + (m->bits == 8 ? columns : 16);
            if (inverse > 0) total += round_codes_neon(x + i, inverse, codes);
            if (m->bits == 8)
                for (int j = 0; j < COLUMN_ALIGN; j++) {
                    first[j] = (int8_t)(((codes[j] + 128) & 255) - 128);
                    second[j] = (int8_t)((codes[j] - first[j]) / 256);
                }
            else
                for (int j = 0; j < COLUMN_ALIGN / 2; j++) {
                    first[j] = (int8_t)codes[2 * j];
                    second[j] = (int8_t)codes[2 * j + 1];
                }
        }
        to.scales[b] = scale;
        to.sums[b] = (m->bits == 8 ? 1.0f : scale) * (float)total;
        /* codes . x, or (codes - the middle) . x where no block has a zero point of its own */
        const int32_t offset = m->bits == 8 ? CODE_OFFSET : 0;
        to.acc_init[b * DOT_INIT] = (offset - (m->zeros ? 0 : 1 << (m->bits - 1))) * total;
    }
}

#undef NAME
#undef TARGET
#undef CODE_OFFSET
