/* State files: what a sequence is, apart from its model. format.h has the layout. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "session.h"
#include "sha256.h"

enum { DIGEST_BYTES = 32 };

/* Sizes of a file's parts; none can overflow, since each count is that of a model. */
typedef struct {
    uint64_t dtypes, tokens, seen, states, whole; /* whole: the digest included */
} Layout;

static Layout layout_of(const Model *m, uint64_t token_count, uint64_t seen_count) {
    Layout l = {.dtypes = ((uint64_t)m->layer_count + 1) / 2 * 8,
                .tokens = sizeof(int32_t) * token_count,
                .seen = sizeof(int32_t) * seen_count,
                .states = sizeof(float) * state_floats(m)};
    l.whole = sizeof(retnet_state_header) + l.dtypes + l.tokens + l.seen + l.states + DIGEST_BYTES;
    return l;
}

static retnet_status save(const retnet_session *session, const char *path, retnet_error *error) {
    const retnet_model *model = session->model;
    const Model *m = &model->model;
    int32_t *seen = malloc(sizeof *seen * (size_t)m->vocab_size);
    if (!seen) return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory to save a state");
    uint64_t count = 0;
    for (int32_t id = 0; id < m->vocab_size; id++)
        if (session->seen[id]) seen[count++] = id;
    retnet_state_header header = {.version = RETNET_STATE_VERSION,
                                  .state_count = (uint32_t)m->layer_count,
                                  .position = session->position,
                                  .seen_count = count};
    memcpy(header.magic, RETNET_STATE_MAGIC, sizeof header.magic);
    memcpy(header.fingerprint, model->fingerprint, sizeof header.fingerprint);
    static const uint32_t dtypes[MOST_LAYERS + 1] = {RETNET_FLOAT32};
    const Layout l = layout_of(m, 0, count);
    uint8_t digest[DIGEST_BYTES];
    const Piece pieces[] = {{&header, sizeof header},
                            {dtypes, (size_t)l.dtypes},
                            {seen, (size_t)l.seen},
                            {session->states, (size_t)l.states},
                            {digest, sizeof digest}};
    Sha256 hash;
    sha256_begin(&hash);
    for (size_t i = 0; i + 1 < sizeof pieces / sizeof *pieces; i++)
        sha256_add(&hash, pieces[i].data, pieces[i].size);
    sha256_end(&hash, digest);
    const retnet_status status =
        replace_file(path, pieces, sizeof pieces / sizeof *pieces, error);
    free(seen);
    return status;
}

retnet_status retnet_session_save(retnet_session *session, const char *path, retnet_error *error) {
    if (begin_call_or_fail(session, error)) return RETNET_BUSY;
    const retnet_status status = save(session, path, error);
    end_call(session);
    return status;
}

/* Ids of the vocabulary; those that were seen ascend. */
static retnet_status check_ids(const Model *m, const int32_t *ids, uint64_t count, int ascending,
                               uint64_t offset, retnet_error *error) {
    for (uint64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= m->vocab_size)
            return fail(error, RETNET_BAD_FILE, offset + sizeof *ids * i,
                        "token id %d is out of range: this model has ids 0 to %d", ids[i],
                        m->vocab_size - 1);
        if (ascending && i && ids[i] <= ids[i - 1])
            return fail(error, RETNET_BAD_FILE, offset + sizeof *ids * i,
                        "the ids that were seen do not ascend: %d follows %d", ids[i], ids[i - 1]);
    }
    return RETNET_OK;
}

/* Header and size, against the model. */
static retnet_status check_header(const retnet_model *model, const uint8_t *file, uint64_t size,
                                  retnet_state_header *header, Layout *l, retnet_error *error) {
    const Model *m = &model->model;
    if (size >= 8 && !memcmp(file, "RETSTATE", 8))
        return fail(error, RETNET_BAD_FILE, 0,
                    "a state file of an older version; retnet-edge reads it, and writes this one");
    if (size < sizeof *header || memcmp(file, RETNET_STATE_MAGIC, sizeof header->magic))
        return fail(error, RETNET_BAD_FILE, 0, "not a state file: it does not begin with %s",
                    RETNET_STATE_MAGIC);
    memcpy(header, file, sizeof *header);
    if (header->version != RETNET_STATE_VERSION)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_state_header, version),
                    "the state file's version is %u; this library reads %d", header->version,
                    RETNET_STATE_VERSION);
    if (memcmp(header->fingerprint, model->fingerprint, sizeof header->fingerprint))
        return fail(error, RETNET_OTHER_MODEL, offsetof(retnet_state_header, fingerprint),
                    "it is a state of another model");
    if (header->state_count != (uint32_t)m->layer_count)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_state_header, state_count),
                    "it has %u states; this model has %d", header->state_count, m->layer_count);
    if (header->position < 0 || header->position == INT64_MAX)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_state_header, position),
                    "its position is %lld; a state has seen 0 tokens or more",
                    (long long)header->position);
    if (header->token_count > INT32_MAX || header->seen_count > (uint64_t)m->vocab_size)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_state_header, token_count),
                    "it lists %llu tokens and %llu ids of a vocabulary of %d",
                    (unsigned long long)header->token_count,
                    (unsigned long long)header->seen_count, m->vocab_size);
    *l = layout_of(m, header->token_count, header->seen_count);
    if (size != l->whole)
        return fail(error, RETNET_BAD_FILE, NO_OFFSET,
                    "it has %llu bytes; a state file like it has %llu", (unsigned long long)size,
                    (unsigned long long)l->whole);
    return RETNET_OK;
}

/* All that follows the header. */
static retnet_status check_content(const Model *m, const uint8_t *file,
                                   const retnet_state_header *header, const Layout *l,
                                   retnet_error *error) {
    const uint64_t size = l->whole;
    uint8_t digest[DIGEST_BYTES];
    sha256(file, (size_t)(size - DIGEST_BYTES), digest);
    if (memcmp(digest, file + size - DIGEST_BYTES, sizeof digest))
        return fail(error, RETNET_BAD_FILE, size - DIGEST_BYTES,
                    "it was changed since it was written: its SHA-256 does not fit");
    const uint32_t *dtypes = (const void *)(file + sizeof *header);
    for (uint64_t i = 0; i < l->dtypes / sizeof *dtypes; i++)
        if (dtypes[i] != RETNET_FLOAT32)
            return fail(error, RETNET_BAD_FILE, sizeof *header + sizeof *dtypes * i,
                        "state %llu is not float32", (unsigned long long)i);
    const uint64_t ids = sizeof *header + l->dtypes;
    const int32_t *tokens = (const void *)(file + ids);
    retnet_status status = check_ids(m, tokens, header->token_count, 0, ids, error);
    if (status == RETNET_OK)
        status = check_ids(m, tokens + header->token_count, header->seen_count, 1,
                           ids + l->tokens, error);
    if (status != RETNET_OK) return status;
    if (!all_finite_floats((const void *)(file + ids + l->tokens + l->seen), state_floats(m)))
        return fail(error, RETNET_BAD_FILE, ids + l->tokens + l->seen,
                    "a state holds what is no finite number");
    return RETNET_OK;
}

static retnet_status load(retnet_session *session, const char *path, retnet_error *error) {
    const Model *m = &session->model->model;
    Mapping mapping;
    retnet_status status = map_path(path, &mapping, error);
    if (status != RETNET_OK) return status;
    retnet_state_header header;
    Layout l;
    status = check_header(session->model, mapping.data, mapping.size, &header, &l, error);
    /* a copy: what was checked is what is used, whoever writes the file meanwhile */
    uint8_t *file = status == RETNET_OK ? allocate_aligned(mapping.size) : NULL;
    if (file) memcpy(file, mapping.data, (size_t)mapping.size);
    const uint64_t size = mapping.size;
    unmap(&mapping);
    if (status != RETNET_OK) return status;
    if (!file) return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a state file");
    status = check_header(session->model, file, size, &header, &l, error);
    if (status == RETNET_OK) status = check_content(m, file, &header, &l, error);
    if (status == RETNET_OK) {
        const uint8_t *ids = file + sizeof header + l.dtypes;
        const int32_t *tokens = (const void *)ids;
        memset(session->seen, 0, (size_t)m->vocab_size);
        for (uint64_t i = 0; i < header.token_count + header.seen_count; i++)
            session->seen[tokens[i]] = 1;
        memcpy(session->states, ids + l.tokens + l.seen, (size_t)l.states);
        session->position = header.position;
        session->has_logits = 0;
    }
    free_aligned(file);
    return status;
}

retnet_status retnet_session_load(retnet_session *session, const char *path, retnet_error *error) {
    if (begin_call_or_fail(session, error)) return RETNET_BUSY;
    const retnet_status status = load(session, path, error);
    end_call(session);
    return status;
}
