/* The layout of a packed model (a.retnet), of the model table in it, and of state files. The only
 * description of it: Python writes what stands here (runtime/packed/), C reads it.
 *
 * All numbers are little-endian; every record is a multiple of 8 bytes long and lies on one. What is
 * reserved is 0.
 *
 *     retnet_file_header
 *     retnet_section [section_count]
 *     the sections, each on a multiple of 64 bytes, the weights on one of 16,384, none over another
 */
#ifndef RETNET_FORMAT_H
#define RETNET_FORMAT_H

#include <stdint.h>

#define RETNET_FILE_MAGIC "RETNETPK" /* 8 bytes, no ending 0 */
#define RETNET_STATE_MAGIC "RETSTAT3"

enum {
    RETNET_FILE_VERSION = 1,
    RETNET_TABLE_VERSION = 1,
    RETNET_GENERATION_VERSION = 1,
    RETNET_GOLDEN_VERSION = 1,
    RETNET_STATE_VERSION = 3,
    RETNET_MOST_SECTIONS = 64,
    RETNET_SECTION_ALIGN = 64,
    RETNET_WEIGHTS_ALIGN = 16384,
};

/* Kinds of sections. A reader skips those that it does not know. */
enum {
    RETNET_KIND_TABLE = 1,         /* retnet_table_header … */
    RETNET_KIND_WEIGHTS = 2,       /* what the table's places point into */
    RETNET_KIND_TOKENIZER = 3,     /* kept free: no reader has one yet */
    RETNET_KIND_GENERATION = 4,    /* retnet_generation_record, then its ends */
    RETNET_KIND_CHAT_TEMPLATE = 5, /* UTF-8 */
    RETNET_KIND_GOLDEN = 6,        /* retnet_golden_header … */
    RETNET_KIND_LICENCE = 7,       /* UTF-8 */
    RETNET_KIND_CARD = 8,          /* UTF-8, Markdown */
    RETNET_KIND_MANIFEST = 9,      /* the bundle's manifest.json, for Python alone */
    RETNET_KIND_TOKENIZER_JSON = 10, /* its tokenizer.json, for Python alone */
};

/* fingerprint: of the bundle that the file was packed from; state files carry it. sha256: of header
 * and section records as they stand, with this field 0. */
typedef struct {
    char magic[8];
    uint32_t version, header_bytes; /* header_bytes: of this record and the sections' */
    uint64_t file_bytes;
    uint32_t section_count, reserved;
    uint8_t fingerprint[32];
    uint8_t sha256[32];
} retnet_file_header; /* 96 bytes */

typedef struct {
    uint32_t kind, version;
    uint64_t offset, bytes; /* in the file */
    uint64_t reserved;
    uint8_t sha256[32]; /* of the section's bytes */
} retnet_section; /* 64 bytes */

/* ------------------------------------------------------------------------- model table
 *
 *     retnet_table_header
 *     LayerPlan [layer_count]          at layers_offset
 *     float64 gamma [heads]            at gammas_offset: the decay of a head, in (0, 1]
 *     float64 frequency [key_dim / 2]  at frequencies_offset: theta / (2 pi) of a pair of channels
 *     own bytes                        at own_offset: small tensors that the weights do not hold
 *
 * Offsets count from the table's beginning. */

/* `size` bytes at `offset` of the weights, or where `own` is 1 of the table's own bytes. */
typedef struct {
    uint64_t offset, size;
    int64_t own;
} Place; /* 24 bytes */

/* W [rows, inputs] in blocks along its inputs, as `Matrix` in model.h has it. codes: [rows, blocks,
 * block * bits / 8] bytes; scales: [rows, blocks], float16 where half_scales is 1 and else float32;
 * zeros: packed like codes, each row padded to a byte, only looked at where own_zeros is 1. */
typedef struct {
    Place codes, scales, zeros;
    int32_t rows, inputs, bits, block, half_scales, own_zeros;
} MatrixPlan; /* 96 bytes */

/* Norms: float32 [d_model], head_norm float32 [value_dim]. qkvg: [2 heads key_dim +
 * 2 heads value_dim, d_model]; out: [d_model, heads value_dim]; inner: [ffn_dim or, gated,
 * 2 ffn_dim, d_model]; down: [d_model, ffn_dim]. */
typedef struct {
    Place retention_norm, head_norm, ffn_norm;
    MatrixPlan qkvg, out, inner, down;
} LayerPlan; /* 456 bytes */

/* Flags of a table. */
enum {
    RETNET_GATED_FFN = 1, /* act(first half) * second half; else act alone */
    RETNET_GELU = 2,      /* act is GELU (erf); else SiLU */
    RETNET_EPS_Z_N = 4,   /* the head norm's eps times Z_n = (1 - gamma^n) / (1 - gamma) */
};

/* How a state decays; later versions of the table may know decays a token. */
enum { RETNET_DECAY_CONSTANT = 0 };

/* header_bytes, layer_bytes: of the records, so that later ones may be longer. conv_width: of a
 * short convolution before q, k and v, which this version has none of (0). */
typedef struct {
    uint32_t version, header_bytes, layer_bytes, flags;
    int32_t layer_count, d_model, heads, key_dim, value_dim, ffn_dim, vocab_size;
    uint32_t decay, conv_width, reserved;
    float norm_eps, head_norm_eps;
    uint64_t table_bytes;
    uint64_t layers_offset, gammas_offset, frequencies_offset, own_offset, own_bytes;
    Place final_norm;
    MatrixPlan embedding, head; /* a tied head is the embedding once more */
} retnet_table_header; /* 328 bytes */

/* --------------------------------------------------------------- generation and golden */

/* drawable: ids below it have a token. begin, padding: -1 where there is none. Then int32 ends
 * [end_count]. */
typedef struct {
    uint32_t version, end_count;
    int32_t drawable, begin, padding, top_k;
    double temperature, top_p, min_p, repetition_penalty;
} retnet_generation_record; /* 56 bytes */

/* The float64 reference on two runs of tokens: `near` from position 0 and the empty state, `far`
 * from far_position and the states that `near` ends with. Logits are those of the last `rows` tokens
 * of a run. Then int32 near_tokens [near_count], int32 far_tokens [far_count], float32 near_logits
 * [rows, vocab_size], float32 far_logits [rows, vocab_size], float32 near_states [layer_count,
 * heads, key_dim, value_dim]. */
typedef struct {
    uint32_t version, near_count, far_count, rows;
    int64_t far_position;
} retnet_golden_header; /* 24 bytes */

/* -------------------------------------------------------------------------- state file
 *
 *     retnet_state_header, then
 *     uint32 dtype [state_count]  and 4 bytes of 0 where their number is odd
 *     int32 tokens [token_count]  what the sequence consists of, where the writer knows it
 *     int32 seen [seen_count]     ids that occur in it, ascending
 *     the states, in the order of the layers, each [heads, key_dim, value_dim]
 *     SHA-256 of every byte before it */
enum { RETNET_FLOAT32 = 0, RETNET_FLOAT16 = 1, RETNET_INT64 = 2, RETNET_INT8 = 3, RETNET_UINT8 = 4 };

typedef struct {
    char magic[8];
    uint32_t version, state_count;
    int64_t position;
    uint64_t token_count, seen_count;
    uint8_t fingerprint[32];
} retnet_state_header; /* 72 bytes */

#define RETNET_STATIC_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
RETNET_STATIC_SIZE(retnet_file_header, 96);
RETNET_STATIC_SIZE(retnet_section, 64);
RETNET_STATIC_SIZE(Place, 24);
RETNET_STATIC_SIZE(MatrixPlan, 96);
RETNET_STATIC_SIZE(LayerPlan, 456);
RETNET_STATIC_SIZE(retnet_table_header, 328);
RETNET_STATIC_SIZE(retnet_generation_record, 56);
RETNET_STATIC_SIZE(retnet_golden_header, 24);
RETNET_STATIC_SIZE(retnet_state_header, 72);

#endif
