/* libretnet: runs a packed Retentive Network (RetNet, arXiv 2307.08621) on a CPU.
 *
 * A model is a file (`retnet-edge pack a.edge a.retnet`; its layout: format.h) that is mapped and
 * used where it lies. A session is one sequence on a model: states of constant size, a position,
 * the last logits. Many sessions may share a model.
 *
 * Errors: functions return a retnet_status, RETNET_OK being 0. Those that take a retnet_error
 * fill it in where they fail; NULL is allowed there. What fails has changed nothing but what its
 * comment says. Nothing is printed, and nothing ends the process.
 *
 * Threads: a model may be used by any number of threads. A session and a sampler take one caller at
 * a time: a second thread in a session gets RETNET_BUSY and changes nothing. The library has no global
 * state.
 *
 * Memory is stated where it is taken. Texts are UTF-8; sizes of texts are bytes, without an ending
 * 0. Little-endian machines only, as the files are. */
#ifndef RETNET_H
#define RETNET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(RETNET_STATIC)
#define RETNET_API
#elif defined(_WIN32) && defined(RETNET_BUILD)
#define RETNET_API __declspec(dllexport)
#elif defined(_WIN32)
#define RETNET_API __declspec(dllimport)
#else
#define RETNET_API __attribute__((visibility("default")))
#endif

#define RETNET_VERSION_MAJOR 1
#define RETNET_VERSION_MINOR 0

enum {
    RETNET_MOST_THREADS = 256,
    RETNET_MOST_TOKENS = 4096,     /* of a call of retnet_session_feed */
    RETNET_ERROR_BYTES = 256,      /* of a sentence, its ending 0 included */
    RETNET_FINGERPRINT_BYTES = 32, /* of a bundle: SHA-256 */
};

typedef enum {
    RETNET_OK = 0,
    RETNET_NO_MEMORY = 1,     /* or no threads */
    RETNET_BAD_FILE = 2,      /* a file, or a part of one, is not what it should be */
    RETNET_BAD_THREADS = 3,   /* not 1 to RETNET_MOST_THREADS */
    RETNET_NO_KERNELS = 4,    /* this CPU lacks them */
    RETNET_BUSY = 5,          /* another thread's call is under way: nothing was done */
    RETNET_BAD_COUNT = 6,     /* not 1 to RETNET_MOST_TOKENS tokens */
    RETNET_BAD_TOKEN = 7,     /* not 0 to vocab_size - 1 */
    RETNET_BAD_POSITION = 8,  /* negative, or too large to be counted on from */
    RETNET_BAD_BUFFER = 9,    /* missing, askew, or of another size */
    RETNET_BAD_ARGUMENT = 10, /* an option out of its range; the sentence says which */
    RETNET_NO_FILE = 11,      /* cannot be opened, read, mapped or written; the sentence says why */
    RETNET_OTHER_MODEL = 12,  /* a state of another model */
} retnet_status;

/* What went wrong. offset: of the byte in the file that is at fault, or UINT64_MAX. */
typedef struct {
    int32_t code; /* the retnet_status */
    int32_t reserved;
    uint64_t offset;
    char message[RETNET_ERROR_BYTES]; /* one sentence, ended by 0, without control characters */
} retnet_error;

/* The library's version as "1.0". */
RETNET_API const char *retnet_version(void);

/* ------------------------------------------------------------------------------ models */

typedef struct retnet_model retnet_model;

enum {
    RETNET_SKIP_WEIGHT_HASH = 1, /* the caller has checked the file before: its weights' SHA-256 is
                                    not computed. All else is checked as ever. */
};

/* Open a packed file. Everything in it is checked before it is used. The weights stay mapped;
 * beside them a model takes some kB. `*model` is NULL where it fails: RETNET_NO_FILE,
 * RETNET_BAD_FILE, RETNET_NO_MEMORY. */
RETNET_API retnet_status retnet_model_open(const char *path, uint32_t flags, retnet_model **model,
                                           retnet_error *error);

/* The same of `size` bytes at `offset` of an open file (an asset inside an APK); size 0: all that
 * is left. offset: a multiple of 64. The descriptor may be closed afterwards. */
RETNET_API retnet_status retnet_model_open_fd(int fd, uint64_t offset, uint64_t size,
                                              uint32_t flags, retnet_model **model,
                                              retnet_error *error);

/* The same of memory, which must be aligned to 64 bytes, outlive the model and all its sessions,
 * and not change. */
RETNET_API retnet_status retnet_model_open_buffer(const void *data, uint64_t size, uint32_t flags,
                                                  retnet_model **model, retnet_error *error);

/* A model of a table (format.h: retnet_table_header) and weights that lie apart, as they do in a
 * bundle; memory as for retnet_model_open_buffer, the table aligned to 8 bytes. fingerprint: what
 * its state files are marked with. There are no hashes to check, and no tokenizer. */
RETNET_API retnet_status retnet_model_open_parts(const void *table, uint64_t table_size,
                                                 const void *weights, uint64_t weights_size,
                                                 const uint8_t fingerprint[RETNET_FINGERPRINT_BYTES],
                                                 retnet_model **model, retnet_error *error);

/* The caller is done with the model. Its memory goes with the last session on it. NULL: nothing. */
RETNET_API void retnet_model_close(retnet_model *model);

/* Numbers of a model. */
typedef struct {
    int32_t layers, d_model, heads, key_dim, value_dim, ffn_dim, vocab_size;
    int32_t drawable;      /* ids 0 … drawable - 1 have a token; the others are padding */
    int32_t has_tokenizer; /* 0: token ids alone, as ever in this version */
    int32_t begin_token;   /* what a text begins with, -1: nothing */
    uint64_t weight_bytes; /* mapped */
    uint64_t step_bytes;   /* of weights that a step reads: all but an embedding that is no head */
    uint64_t state_bytes;  /* of a session's states, whatever its length */
    uint8_t fingerprint[RETNET_FINGERPRINT_BYTES];
} retnet_model_info;

RETNET_API void retnet_model_get_info(const retnet_model *model, retnet_model_info *info);

/* Sections of a packed file that hold text or data for the caller. */
typedef enum {
    RETNET_SECTION_CHAT_TEMPLATE = 5,
    RETNET_SECTION_GOLDEN = 6,
    RETNET_SECTION_LICENCE = 7,
    RETNET_SECTION_CARD = 8,
} retnet_section_kind;

/* A section's bytes, in place, and how many they are; NULL and 0 where the file has none, or they are
 * not those that it was packed with: their SHA-256 is computed now. */
RETNET_API const void *retnet_model_section(const retnet_model *model, int32_t kind,
                                            uint64_t *size);

/* The ids at which a text ends, and how many they are. */
RETNET_API const int32_t *retnet_model_ends(const retnet_model *model, int32_t *count);

/* ---------------------------------------------------------------------------- sessions */

typedef struct retnet_session retnet_session;

/* A sequence at position 0. threads: that compute, the caller's among them. kernels: a name of
 * retnet_session_kernels, or NULL for the best that this CPU has. Takes the states
 * (retnet_model_info.state_bytes), 4 * vocab_size bytes of logits and some hundred kB.
 * RETNET_BAD_THREADS, RETNET_NO_KERNELS, RETNET_NO_MEMORY. */
RETNET_API retnet_status retnet_session_new(retnet_model *model, int32_t threads,
                                            const char *kernels, retnet_session **session,
                                            retnet_error *error);

/* RETNET_BUSY, and nothing is freed, while a call is under way. NULL: nothing. */
RETNET_API retnet_status retnet_session_free(retnet_session *session);

/* A second sequence that has seen what this one has, with as many threads and the same kernels. */
RETNET_API retnet_status retnet_session_fork(retnet_session *session, retnet_session **forked,
                                             retnet_error *error);

/* Back to position 0 and the empty state. */
RETNET_API retnet_status retnet_session_reset(retnet_session *session);

/* Feed `count` (1 to RETNET_MOST_TOKENS) tokens. A token gives the same bits alone and among
 * others, on any number of threads. Several take memory for the time of the call, about
 * 4 * count * (4 * d_model + 2 * the widest matrix) bytes. RETNET_BAD_COUNT, RETNET_BAD_TOKEN,
 * RETNET_BAD_POSITION, RETNET_NO_MEMORY: nothing was fed then. */
RETNET_API retnet_status retnet_session_feed(retnet_session *session, const int32_t *tokens,
                                             int64_t count);

/* The logits [vocab_size] after the last token, in place until the next call; NULL before one. */
RETNET_API const float *retnet_session_logits(const retnet_session *session);

/* Number of tokens that the state has seen. */
RETNET_API int64_t retnet_session_position(const retnet_session *session);

/* The instruction set that runs: "avx512", "avx2", "i8mm", "dotprod", "neon" or "plain". */
RETNET_API const char *retnet_session_kernels(const retnet_session *session);

/* What the time of calls goes into; "other" is norms, activations, rounding and the embedding. */
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

/* Seconds that all calls so far have spent in each stage. */
RETNET_API retnet_status retnet_session_seconds(retnet_session *session,
                                                double seconds[RETNET_STAGES]);

/* ------------------------------------------------------------------------------ states */

/* Copies of the states, float32 [layers, heads, key_dim, value_dim], out of a session and into one,
 * which then is at `position`. size: state_bytes. seen: ids that the sequence holds, for the
 * repetition penalty. RETNET_BAD_BUFFER, RETNET_BAD_POSITION, RETNET_BAD_COUNT, RETNET_BAD_TOKEN. */
RETNET_API retnet_status retnet_session_get_states(retnet_session *session, float *states,
                                                   uint64_t size);
RETNET_API retnet_status retnet_session_set_states(retnet_session *session, const float *states,
                                                   uint64_t size, int64_t position,
                                                   const int32_t *seen, int32_t seen_count);

/* Whether a token is in the sequence: vocab_size bytes of 0 or 1, in place. */
RETNET_API const uint8_t *retnet_session_seen(const retnet_session *session);

/* A state file (format.h), the one that `retnet-edge generate --state` writes: whole or not at
 * all. RETNET_NO_FILE. */
RETNET_API retnet_status retnet_session_save(retnet_session *session, const char *path,
                                             retnet_error *error);

/* Go on from a state file of this model; the session is as it was where it fails: RETNET_NO_FILE,
 * RETNET_BAD_FILE, RETNET_OTHER_MODEL. */
RETNET_API retnet_status retnet_session_load(retnet_session *session, const char *path,
                                             retnet_error *error);

/* ---------------------------------------------------------------------------- sampling */

/* How to choose among the next tokens, in this order: repetition_penalty (0.01 to 100; 1: off),
 * temperature (>= 0; 0: the likeliest always), top_k (>= 0; 0: all), top_p (above 0, at most 1),
 * min_p (0 to 1). seed: of the generator, PCG64 seeded as NumPy seeds it: the same tokens as
 * Python's from the same logits. */
typedef struct {
    double temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;
    int32_t reserved;
    uint64_t seed;
} retnet_sampling;

/* The model's own defaults. */
RETNET_API void retnet_model_get_sampling(const retnet_model *model, retnet_sampling *sampling);

typedef struct retnet_sampler retnet_sampler;

/* RETNET_BAD_ARGUMENT names the option, its value and what is allowed. count: of the logits that
 * it will get. Takes 16 * count bytes. */
RETNET_API retnet_status retnet_sampler_new(const retnet_sampling *sampling, int32_t count,
                                            retnet_sampler **sampler, retnet_error *error);
RETNET_API void retnet_sampler_free(retnet_sampler *sampler);

/* The next token of logits [count]. seen: [count] bytes, 1 where the penalty applies, or NULL.
 * RETNET_BAD_BUFFER where the largest logit is not finite. */
RETNET_API retnet_status retnet_sample(retnet_sampler *sampler, const float *logits,
                                       const uint8_t *seen, int32_t *token);

#ifdef __cplusplus
}
#endif

#endif
