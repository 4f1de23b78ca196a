#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

uint64_t state_floats(const Model *m) {
    return (uint64_t)m->layer_count * (uint64_t)m->heads * (uint64_t)m->key_dim *
           (uint64_t)m->value_dim;
}

/* 0 where another call is under way. */
static int begin_call(retnet_session *session) {
    int free_before = 0;
    return atomic_compare_exchange_strong(&session->busy, &free_before, 1);
}

retnet_status begin_call_or_fail(retnet_session *session, retnet_error *error) {
    no_error(error);
    if (begin_call(session)) return RETNET_OK;
    return fail(error, RETNET_BUSY, NO_OFFSET,
                "this session is in use by another thread, and runs one call at a time");
}

void end_call(retnet_session *session) { atomic_store(&session->busy, 0); }

static void free_session(retnet_session *session) {
    engine_free(session->engine);
    free_aligned(session->states);
    free_aligned(session->logits);
    free(session->seen);
    retnet_model_close(session->model);
    free(session);
}

retnet_status retnet_session_new(retnet_model *model, int32_t threads, const char *kernels,
                                 retnet_session **to, retnet_error *error) {
    no_error(error);
    *to = NULL;
    const Model *m = &model->model;
    retnet_session *session = calloc(1, sizeof *session);
    if (!session) return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a session");
    session->model = hold_model(model);
    const int status = engine_new(m, threads, kernels, &session->engine);
    if (status == RETNET_BAD_THREADS)
        fail(error, RETNET_BAD_THREADS, NO_OFFSET, "threads is %d; allowed is 1 to %d", threads,
             RETNET_MOST_THREADS);
    else if (status == RETNET_NO_KERNELS)
        fail(error, RETNET_NO_KERNELS, NO_OFFSET, "this CPU or this library has no kernels %.32s",
             kernels ? kernels : "");
    const uint64_t state_bytes = sizeof(float) * state_floats(m);
    const uint64_t logit_bytes = sizeof(float) * (uint64_t)m->vocab_size;
    if (status == RETNET_OK) {
        session->states = allocate_aligned(state_bytes);
        session->logits = allocate_aligned(logit_bytes);
        session->seen = calloc((size_t)m->vocab_size, 1);
    }
    if (!session->states || !session->logits || !session->seen) {
        free_session(session);
        if (status == RETNET_BAD_THREADS || status == RETNET_NO_KERNELS)
            return (retnet_status)status;
        return fail(error, RETNET_NO_MEMORY, NO_OFFSET,
                    "no memory for a session of %llu bytes, or no threads",
                    (unsigned long long)(state_bytes + logit_bytes));
    }
    memset(session->states, 0, (size_t)state_bytes);
    memset(session->logits, 0, (size_t)logit_bytes);
    *to = session;
    return RETNET_OK;
}

retnet_status retnet_session_free(retnet_session *session) {
    if (!session) return RETNET_OK;
    if (!begin_call(session)) return RETNET_BUSY;
    free_session(session);
    return RETNET_OK;
}

retnet_status retnet_session_fork(retnet_session *session, retnet_session **forked,
                                  retnet_error *error) {
    *forked = NULL;
    if (begin_call_or_fail(session, error)) return RETNET_BUSY;
    const Model *m = &session->model->model;
    retnet_session *to;
    const retnet_status status =
        retnet_session_new(session->model, engine_threads(session->engine),
                           engine_kernels(session->engine), &to, error);
    if (status == RETNET_OK) {
        memcpy(to->states, session->states, sizeof(float) * (size_t)state_floats(m));
        memcpy(to->logits, session->logits, sizeof(float) * (size_t)m->vocab_size);
        memcpy(to->seen, session->seen, (size_t)m->vocab_size);
        to->position = session->position;
        to->has_logits = session->has_logits;
        *forked = to;
    }
    end_call(session);
    return status;
}

retnet_status retnet_session_reset(retnet_session *session) {
    if (!begin_call(session)) return RETNET_BUSY;
    const Model *m = &session->model->model;
    memset(session->states, 0, sizeof(float) * (size_t)state_floats(m));
    memset(session->seen, 0, (size_t)m->vocab_size);
    session->position = 0;
    session->has_logits = 0;
    end_call(session);
    return RETNET_OK;
}

/* Is it a call that can be made? */
static retnet_status check_feed(const retnet_session *session, const int32_t *tokens,
                                int64_t count) {
    if (!tokens || count < 1 || count > RETNET_MOST_TOKENS) return RETNET_BAD_COUNT;
    if (session->position > INT64_MAX - count) return RETNET_BAD_POSITION;
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= session->model->model.vocab_size) return RETNET_BAD_TOKEN;
    return RETNET_OK;
}

static retnet_status feed_tokens(retnet_session *session, const int32_t *tokens, int64_t count) {
    const retnet_status wrong = check_feed(session, tokens, count);
    if (wrong) return wrong;
    if (engine_run(session->engine, tokens, (int)count, session->position, session->states,
                   session->logits))
        return RETNET_NO_MEMORY;
    for (int64_t i = 0; i < count; i++) session->seen[tokens[i]] = 1;
    session->position += count;
    session->has_logits = 1;
    return RETNET_OK;
}

retnet_status retnet_session_feed(retnet_session *session, const int32_t *tokens, int64_t count) {
    if (!begin_call(session)) return RETNET_BUSY;
    const retnet_status status = feed_tokens(session, tokens, count);
    end_call(session);
    return status;
}

const float *retnet_session_logits(const retnet_session *session) {
    return session->has_logits ? session->logits : NULL;
}

int64_t retnet_session_position(const retnet_session *session) { return session->position; }

const uint8_t *retnet_session_seen(const retnet_session *session) { return session->seen; }

const char *retnet_session_kernels(const retnet_session *session) {
    return engine_kernels(session->engine);
}

retnet_status retnet_session_seconds(retnet_session *session, double seconds[RETNET_STAGES]) {
    if (!begin_call(session)) return RETNET_BUSY;
    memcpy(seconds, engine_seconds(session->engine), sizeof(double) * RETNET_STAGES);
    end_call(session);
    return RETNET_OK;
}

int all_finite_floats(const float *x, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

retnet_status retnet_session_get_states(retnet_session *session, float *states, uint64_t size) {
    if (!states || size != sizeof(float) * state_floats(&session->model->model))
        return RETNET_BAD_BUFFER;
    if (!begin_call(session)) return RETNET_BUSY;
    memcpy(states, session->states, (size_t)size);
    end_call(session);
    return RETNET_OK;
}

retnet_status retnet_session_set_states(retnet_session *session, const float *states, uint64_t size,
                                        int64_t position, const int32_t *seen,
                                        int32_t seen_count) {
    const Model *m = &session->model->model;
    if (!states || (uintptr_t)states % sizeof(float) || size != sizeof(float) * state_floats(m))
        return RETNET_BAD_BUFFER;
    if (position < 0 || position == INT64_MAX) return RETNET_BAD_POSITION;
    if (seen_count < 0 || (seen_count && !seen)) return RETNET_BAD_COUNT;
    for (int32_t i = 0; i < seen_count; i++)
        if (seen[i] < 0 || seen[i] >= m->vocab_size) return RETNET_BAD_TOKEN;
    if (!begin_call(session)) return RETNET_BUSY;
    memcpy(session->states, states, (size_t)size);
    memset(session->seen, 0, (size_t)m->vocab_size);
    for (int32_t i = 0; i < seen_count; i++) session->seen[seen[i]] = 1;
    session->position = position;
    session->has_logits = 0;
    end_call(session);
    return RETNET_OK;
}
