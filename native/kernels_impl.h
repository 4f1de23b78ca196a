/* What one thread does with rows of numbers, for one instruction set. The header isa_*.h that was
 * included before gives NAME and TARGET of a function, and the vectors: VecI16 of I16_LANES int16,
 * VecI32 of I32_LANES int32, VecF32 of F32_LANES float32, Int4x64 of 64 weights of 4 bits. */

#define VecI32 NAME(VecI32)
#define VecI16 NAME(VecI16)
#define Int4x64 NAME(Int4x64)
#define VecF32 NAME(VecF32)

/* Scales of F32_LANES blocks of a row from `i` on, 0 where there are no more. */
TARGET static inline VecF32 NAME(scales)(const Matrix *m, size_t row, int i) {
    const int blocks = m->columns / m->block, n = blocks - i < F32_LANES ? blocks - i : F32_LANES;
    const size_t at = row * (size_t)blocks + (size_t)i;
    if (m->half_scales) return NAME(load_partial_f16)((const uint16_t *)m->scales + at, n);
    return NAME(load_partial)((const float *)m->scales + at, n);
}

/* Zero points of F32_LANES blocks of a row that has its own, anything finite where there are no
 * more.
 */
TARGET static inline VecF32 NAME(zeros)(const Matrix *m, size_t row, int i) {
    if (m->bits == 4) return NAME(nibbles_to_f32)(packed_zero_points(m, row, i, F32_LANES));
    float each[F32_LANES] = {0};
    for (int j = 0; j < F32_LANES && i + j < m->columns / m->block; j++)
        each[j] = (float)zero_point(m, row, i + j);
    return NAME(load_f32)(each);
}

/* What the products of a row's blocks are multiplied with, into `block_scales`: its scales, with 4 bits
 * times the token's. What the row's own zero points, if it has any, add to its sum. */
TARGET static __attribute__((noinline)) float
NAME(combined_scales)(const Matrix *m, size_t row, const Activations *x, float *block_scales) {
    VecF32 part = NAME(zero_f32)();
    for (int i = 0; i < m->columns / m->block; i += F32_LANES) {
        const VecF32 scales = NAME(scales)(m, row, i);
        VecF32 products = scales;
        if (m->bits == 4) products = NAME(mul)(scales, NAME(load_f32)(x->scales + i));
        NAME(store_f32)(block_scales + i, products);
        if (m->zeros)
            part = NAME(fmadd)(part, NAME(mul)(scales, NAME(zeros)(m, row, i)),
                              NAME(load_f32)(x->sums + i));
    }
    return NAME(reduce_add)(part);
}

/* The steps of a unit: one block's, or two's in the halves of a vector. */
TARGET static inline VecF32 NAME(block_scale)(const float *block_scales, int unit, int bits,
                                              int block) {
    return columns_per_accumulator(bits, block) == block
               ? NAME(splat)(block_scales[unit])
               : NAME(splat_pair)(block_scales + 2 * unit);
}

/* sum + the products of COLUMN_ALIGN weights of 8 bits, as they are stored, and as many
 * activations. */
TARGET static inline VecI32 NAME(dot_int8)(VecI32 sum, const uint8_t *codes, const int16_t *x) {
    for (int i = 0; i < COLUMN_ALIGN; i += I16_LANES)
        sum = NAME(dot_i16)(sum, NAME(widen_u8)(codes + i), NAME(load_i16)(x + i));
    return sum;
}

/* Rows `row`, `row` + apart, … times one token: the sum over blocks of scale * scale * (codes .
 * (codes - zero)). They share what is read of x. count: of rows; bits, block: the matrix's. All
 * three are constants. */
TARGET static inline __attribute__((always_inline)) void NAME(gemv_rows)(
    const Matrix *m, size_t row, size_t apart, const Activations *x, float *y, const int count,
    const int bits, const int block, float *buffer) {
    const int columns = m->columns, blocks = columns / block;
    const int unit = columns_per_accumulator(bits, block), units = (columns + unit - 1) / unit;
    const int group = bits == 8 ? COLUMN_ALIGN : INT4_PER_VEC;
    const size_t row_bytes = (size_t)(columns * bits / 8);
    const uint8_t *at[GEMV_ROWS];
    const float *block_scales[GEMV_ROWS];
    float of_zeros[GEMV_ROWS];
    VecF32 sums[GEMV_ROWS];
    UNROLL for (int r = 0; r < count; r++) {
        const size_t found = row + (size_t)r * apart;
        at[r] = m->codes + found * row_bytes;
        block_scales[r] = (const float *)m->scales + found * (size_t)blocks;
        of_zeros[r] = 0;
        if (bits == 4 || m->half_scales || m->zeros) {
            float *own = buffer + r * padded_blocks(blocks);
            of_zeros[r] = NAME(combined_scales)(m, found, x, own);
            block_scales[r] = own;
        }
        sums[r] = NAME(zero_f32)();
    }
    const int16_t *shorts = x->codes;
    const int8_t *fours = int8_codes(x);
    for (int u = 0; u < units; u++) {
        LOOP_MARK(bits, block);
        VecI32 parts[GEMV_ROWS];
        UNROLL for (int r = 0; r < count; r++) parts[r] =
            NAME(load_i32)(x->acc_init + u * I32_LANES);
        for (int j = 0; j < unit; j += group, shorts += group, fours += group)
            UNROLL for (int r = 0; r < count; r++) {
                __builtin_prefetch(at[r] + PREFETCH_BYTES);
                if (bits == 8) parts[r] = NAME(dot_int8)(parts[r], at[r], shorts);
                else {
                    const int half = unit > block && u == units - 1 && columns % INT4_PER_VEC;
                    parts[r] = NAME(dot_int4)(parts[r], NAME(unpack_int4)(at[r], half), fours);
                }
                at[r] += group * bits / 8;
            }
        UNROLL for (int r = 0; r < count; r++)
            sums[r] = NAME(fmadd)(sums[r], NAME(to_f32)(parts[r]),
                                 NAME(block_scale)(block_scales[r], u, bits, block));
    }
    UNROLL for (int r = 0; r < count; r++)
        y[r] = (NAME(reduce_add)(sums[r]) - of_zeros[r]) * (bits == 8 ? x->scales[0] : 1);
}

/* Rows first … last - 1 times one token, some at a time from far places: each place is read
 * straight on, which is what the memory's own reading ahead follows. Rows side by side, or one,
 * take up to twice as long. */
TARGET static void NAME(gemv)(const Matrix *m, int first, int last, const Activations *x, float *y,
                              int add, void *scratch) {
    const int count = m->bits == 8 ? 2 : 4, apart = (last - first) / count;
    const int together = first + apart * count;
    for (int i = 0; i < apart + last - together; i++) {
        const int row = i < apart ? first + i : together + i - apart;
        const int step = i < apart ? apart : 0; /* the last few one by one */
        const size_t at = (size_t)row, by = (size_t)step;
        float found[GEMV_ROWS];
        if (m->bits == 8 && m->block == 128)
            NAME(gemv_rows)(m, at, by, x, found, 2, 8, 128, scratch);
        else if (m->bits == 8) NAME(gemv_rows)(m, at, by, x, found, 2, 8, m->block, scratch);
        else if (m->block == 32) NAME(gemv_rows)(m, at, by, x, found, 4, 4, 32, scratch);
        else NAME(gemv_rows)(m, at, by, x, found, 4, 4, m->block, scratch);
        for (int r = 0; r < (step ? count : 1); r++) {
            float *to = y + row + r * step;
            *to = found[r] + (add ? *to : 0);
        }
    }
}

/* What a tile multiplies with: codes of a panel's rows ready to be multiplied (int16 of 8 bits, a
 * byte each of 4 bits), scales, and scales times the rows' own zero points. */
typedef struct {
    int16_t *codes;
    float *scales, *scaled_zero_points;
} NAME(Panel);

TARGET static NAME(Panel) NAME(panel)(const Matrix *m, int first, int last, void *scratch) {
    const int columns = m->columns, stride = padded_blocks(columns / m->block);
    NAME(Panel) c = {.codes = scratch};
    c.scales = (float *)(c.codes + PANEL_ROWS * (size_t)columns);
    c.scaled_zero_points = c.scales + PANEL_ROWS * (size_t)stride;
    for (int i = 0; i < PANEL_ROWS; i++) {
        const size_t row = (size_t)(first + i < last ? first + i : last - 1);
        const uint8_t *codes = m->codes + row * (size_t)(columns * m->bits / 8);
        int16_t *to = c.codes + (size_t)i * (size_t)columns;
        if (m->bits == 8)
            for (int k = 0; k < columns; k += I16_LANES)
                NAME(store_i16)(to + k, NAME(widen_u8)(codes + k));
        else
            for (int k = 0; k < columns; k += INT4_PER_VEC)
                NAME(store_int4)((uint8_t *)to + k,
                                  NAME(unpack_int4)(codes + k / 2, k + INT4_PER_VEC > columns));
        for (int b = 0; b < columns / m->block; b += F32_LANES) {
            const VecF32 scales = NAME(scales)(m, row, b);
            NAME(store_f32)(c.scales + i * stride + b, scales);
            if (m->zeros)
                NAME(store_f32)(c.scaled_zero_points + i * stride + b,
                             NAME(mul)(scales, NAME(zeros)(m, row, b)));
        }
    }
    return c;
}

/* TILE_ROWS rows of a panel times TILE_TOKENS tokens: out[i] is of row i / TILE_TOKENS and token
 * i % TILE_TOKENS. Every sum is made as `gemv_rows` makes it, so that a token gives the same bits
 * alone and among others. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(
    const Matrix *m, const NAME(Panel) *c, int row, const Activations x[TILE_TOKENS],
    float out[TILE_ROWS * TILE_TOKENS], const int bits, const int block) {
    const int columns = m->columns, stride = padded_blocks(columns / block);
    const int unit = columns_per_accumulator(bits, block);
    const int16_t *codes = c->codes + (size_t)row * (size_t)columns;
    const float *scales = c->scales + (size_t)row * (size_t)stride;
    VecF32 sums[TILE_ROWS * TILE_TOKENS];
    UNROLL for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) sums[i] = NAME(zero_f32)();
    for (int u = 0, k = 0; k < columns; u++) {
        VecI32 parts[TILE_ROWS * TILE_TOKENS];
        UNROLL for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++)
            parts[i] = NAME(load_i32)(x[i % TILE_TOKENS].acc_init + u * I32_LANES);
        if (bits == 4) {
            for (const int end = k + unit; k < end; k += INT4_PER_VEC)
                UNROLL for (int r = 0; r < TILE_ROWS; r++) {
                    const Int4x64 w = NAME(load_int4)((const uint8_t *)(codes + r * columns) + k);
                    UNROLL for (int t = 0; t < TILE_TOKENS; t++) {
                        VecI32 *part = &parts[r * TILE_TOKENS + t];
                        *part = NAME(dot_int4)(*part, w, int8_codes(&x[t]) + k);
                    }
                }
        } else {
            for (const int end = k + unit; k < end; k += I16_LANES) {
                LOOP_MARK(bits, 0);
                VecI16 v[TILE_TOKENS];
                UNROLL for (int t = 0; t < TILE_TOKENS; t++) v[t] = NAME(load_i16)(x[t].codes + k);
                UNROLL for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) parts[i] =
                    NAME(dot_i16)(parts[i], NAME(load_i16)(codes + i / TILE_TOKENS * columns + k),
                                  v[i % TILE_TOKENS]);
            }
        }
        UNROLL for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
            const float *of_row = scales + i / TILE_TOKENS * stride;
            const float *of_token = x[i % TILE_TOKENS].scales;
            VecF32 step = NAME(block_scale)(of_row, u, bits, block);
            if (bits == 4) step = NAME(mul)(step, NAME(block_scale)(of_token, u, bits, block));
            sums[i] = NAME(fmadd)(sums[i], NAME(to_f32)(parts[i]), step);
        }
    }
    UNROLL for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
        const Activations *of = &x[i % TILE_TOKENS];
        const float *scaled_zero_points =
            c->scaled_zero_points + (row + i / TILE_TOKENS) * stride;
        VecF32 part = NAME(zero_f32)();
        for (int b = 0; m->zeros && b < columns / block; b += F32_LANES)
            part = NAME(fmadd)(part, NAME(load_f32)(scaled_zero_points + b),
                               NAME(load_f32)(of->sums + b));
        const float of_zeros = m->zeros ? NAME(reduce_add)(part) : 0;
        out[i] = (NAME(reduce_add)(sums[i]) - of_zeros) * (bits == 8 ? of->scales[0] : 1);
    }
}

/* Rows first … last - 1 times `tokens` tokens; y [tokens, rows]. */
TARGET static void NAME(gemm)(const Matrix *m, int first, int last, const Activations *x,
                                        int tokens, float *y, int add, void *scratch) {
    const NAME(Panel) panel = NAME(panel)(m, first, last, scratch);
    for (int token = 0; token < tokens; token += TILE_TOKENS) {
        Activations some[TILE_TOKENS];
        for (int t = 0; t < TILE_TOKENS; t++)
            some[t] = token_activations(m, x, token + t < tokens ? token + t : token);
        for (int row = first; row < last; row += TILE_ROWS) {
            float out[TILE_ROWS * TILE_TOKENS];
            if (m->bits == 8) NAME(tile)(m, &panel, row - first, some, out, 8, m->block);
            else if (m->block == 32) NAME(tile)(m, &panel, row - first, some, out, 4, 32);
            else NAME(tile)(m, &panel, row - first, some, out, 4, m->block);
            for (int i = 0; i < TILE_ROWS * TILE_TOKENS; i++) {
                const int of = row + i / TILE_TOKENS, t = token + i % TILE_TOKENS;
                float *to = y + (size_t)t * (size_t)m->rows + of;
                if (of < last && t < tokens) *to = out[i] + (add ? *to : 0);
            }
        }
    }
}

/* The largest size in `n` values (a multiple of COLUMN_ALIGN), or NaN where one is not finite. */
TARGET static inline float NAME(absmax)(const float *x, int n) {
    float sizes[COLUMN_ALIGN] = {0}, zeros[COLUMN_ALIGN] = {0}, largest = 0, spoiled = 0;
    for (int i = 0; i < n; i += COLUMN_ALIGN)
        for (int j = 0; j < COLUMN_ALIGN; j++) {
            const float size = fabsf(x[i + j]);
            sizes[j] = size > sizes[j] ? size : sizes[j];
            zeros[j] += x[i + j] * 0.0f;
        }
    for (int j = 0; j < COLUMN_ALIGN; j++) {
        largest = sizes[j] > largest ? sizes[j] : largest;
        spoiled += zeros[j];
    }
    return largest + spoiled;
}

/* Codes of COLUMN_ALIGN values in steps of 1 / inverse; their sum. */
TARGET static inline int32_t NAME(round_codes)(const float *x, float inverse, int16_t *codes) {
    int32_t sum = 0;
    for (int j = 0; j < COLUMN_ALIGN; j++) {
        const float scaled = x[j] * inverse;
        codes[j] = (int16_t)(int32_t)(scaled + copysignf(0.5f, scaled));
        sum += codes[j];
    }
    return sum;
}

/* One token, x = scale * code, as the matrix asks for it: 16 bits and one scale where the weights
 * have 8 bits; 8 bits and a scale a block where they have 4, of every INT4_PER_VEC the even ones
 * first. What is not finite makes the scale, and so every product, not finite; what is so small that
 * the inverse of a scale would not be finite is 0. */
TARGET static void NAME(quantize)(const Matrix *m, const float *x, Activations *out, int token,
                                  void *scratch) {
    if (m->inputs < m->columns) {
        memcpy(scratch, x, sizeof(float) * (size_t)m->inputs);
        memset((float *)scratch + m->inputs, 0, sizeof(float) * (size_t)(m->columns - m->inputs));
        x = scratch;
    }
    const int block = m->block, blocks = m->columns / block,
              in_unit = columns_per_accumulator(m->bits, block) / block;
    const Activations to = token_activations(m, out, token);
    memset(to.acc_init, 0, sizeof(int32_t) * (size_t)(I32_LANES * blocks));
    for (int i = 0; i < padded_blocks(blocks); i++) to.scales[i] = to.sums[i] = 0;
    if (m->bits == 4 && m->columns % INT4_PER_VEC)
        memset(int8_codes(&to) + m->columns - COLUMN_ALIGN, 0, INT4_PER_VEC);
    const float of_all = m->bits == 8 ? NAME(absmax)(x, m->columns) : 0;
    for (int b = 0; b < blocks; b++) {
        const float largest = m->bits == 8 ? of_all : NAME(absmax)(x + b * block, block);
        const float most = m->bits == 8 ? 32767.0f : 127.0f, scale = largest / most;
        const float inverse = largest > TINY && scale < INFINITY ? most / largest : 0;
        int32_t total = 0;
        for (int i = b * block; i < (b + 1) * block; i += COLUMN_ALIGN) {
            int16_t codes[COLUMN_ALIGN] = {0};
            if (inverse > 0) total += NAME(round_codes)(x + i, inverse, codes);
            if (m->bits == 8) {
                memcpy(to.codes + i, codes, sizeof codes);
                continue;
            }
            int8_t *even = int8_codes(&to) + i / INT4_PER_VEC * INT4_PER_VEC + i % INT4_PER_VEC / 2,
                   *odd = even + INT4_PER_VEC / 2;
            for (int j = 0; j < COLUMN_ALIGN / 2; j++) {
                even[j] = (int8_t)codes[2 * j];
                odd[j] = (int8_t)codes[2 * j + 1];
            }
        }
        to.scales[b] = scale;
        to.sums[b] = (m->bits == 8 ? 1.0f : scale) * (float)total;
        if (!m->zeros)
            to.acc_init[b / in_unit * I32_LANES + b % in_unit * SECOND_BLOCK_LANE] =
                -(1 << (m->bits - 1)) * total;
    }
}

/* The row of an embedding. */
TARGET static void NAME(embedding_row)(const Matrix *m, size_t row, float *out, void *scratch) {
    const uint8_t *codes = m->codes + row * (size_t)(m->columns * m->bits / 8);
    float *scales = scratch;
    for (int i = 0; i < m->columns / m->block; i += F32_LANES)
        NAME(store_f32)(scales + i, NAME(scales)(m, row, i));
    for (int i = 0; i < m->inputs; i++) {
        const int code = m->bits == 8 ? codes[i] : codes[i / 2] >> i % 2 * 4 & 15;
        out[i] = scales[i / m->block] * (float)(code - zero_point(m, row, i / m->block));
    }
}

/* x / rms(x) * weight, rms with eps under the root. */
TARGET static void NAME(rms_norm)(const float *x, const float *weight, int n, float eps, float *y) {
    float lanes[16] = {0}, squares = 0;
    int whole = n / 16 * 16;
    for (int i = 0; i < whole; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] += x[i + j] * x[i + j];
    for (int i = whole; i < n; i++) squares += x[i] * x[i];
    for (int j = 0; j < 16; j++) squares += lanes[j];
    const float factor = 1.0f / sqrtf(squares / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

/* e^x to 2 ulp for x in [-87, 88], clamped outside, NaN to the lower end (what has to stay one
 * meets it elsewhere too): 2^k e^r with a polynomial for r (Cephes). */
TARGET static inline float NAME(exponential)(float x) {
    x = x > -87.0f ? x : -87.0f;
    x = x < 88.0f ? x : 88.0f;
    const float k = rintf(x * 1.44269504f);
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = ((int32_t)k + 127) << 23};
    return (p * r * r + r + 1.0f) * power.value;
}

/* out = act(gate) * y, or act(gate) alone where y is NULL; out may be y. */
TARGET static void NAME(activate)(const float *gate, const float *y, int n, int gelu, float *out) {
    for (int i = 0; i < n; i++) {
        float x = gate[i], by = y ? y[i] : 1.0f;
        if (gelu) out[i] = by * (0.5f * x * (1.0f + erff(x * 0.70710678f)));
        else out[i] = by * (x / (1.0f + NAME(exponential)(-x)));
    }
}

/* One head, one token (eq. 6): S = gamma S + k v', o = q S; S [keys, values]. */
TARGET static void NAME(retention_step)(float *restrict state, const float *q, const float *k,
                                const float *restrict v, float gamma, int keys, int values,
                                float *restrict o) {
    memset(o, 0, sizeof(float) * (size_t)values);
    for (int i = 0; i < keys; i++, state += values) {
        const float k_i = k[i], q_i = q[i];
        for (int j = 0; j < values; j++) {
            const float s = NAME(fma)(gamma, state[j], k_i * v[j]);
            state[j] = s;
            o[j] = NAME(fma)(q_i, s, o[j]);
        }
    }
}

#undef VecI32
#undef VecI16
#undef Int4x64
#undef VecF32
#undef NAME
#undef TARGET
#undef I16_LANES
#undef I32_LANES
#undef F32_LANES
#undef SECOND_BLOCK_LANE
