/* Several threads on one engine, and a process that was forked off. Built and run by
 * test_native_kernels.py; writes what is wrong, and exits with 1. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_checks.h"

enum { CALLS = 60 };

static const int32_t TOKENS[] = {7, 1, 60};

typedef struct {
    Run *run;
    int own, busy;
} Caller;

/* The same tokens again and again, in a session of its own or one that others are in. */
static void *call_often(void *arg) {
    Caller *c = arg;
    for (int i = 0; i < CALLS;) {
        const retnet_status status = c->own ? feed(c->run, TOKENS, 3)
                                            : retnet_session_feed(c->run->session, TOKENS, 3);
        if (status == RETNET_OK) i++;
        else if (status == RETNET_BUSY) c->busy++;
        else expect(0, "a status", "callers");
    }
    return NULL;
}

/* Three threads with a session each on one model: each gets what it gets alone. Three in one
 * session: who is refused has changed nothing, so that it ends as if they had stood in a queue. */
static void check_callers(int threads) {
    uint64_t seed = 41;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Opened o;
    expect(!open_small(&m, &o, NULL), "a plan", "callers");
    Run alone = new_run(o.model, &m.plan, threads, NULL, 5), queue = alone;
    queue = new_run(o.model, &m.plan, threads, NULL, 5);
    Caller one = {&alone, 1, 0};
    call_often(&one);
    expect(!one.busy, "busy without others", "callers");
    Caller again = {&queue, 1, 0};
    for (int i = 0; i < 3; i++) call_often(&again);
    Run own[3];
    Caller callers[3];
    pthread_t who[3];
    for (int i = 0; i < 3; i++) {
        own[i] = new_run(o.model, &m.plan, threads, NULL, 5);
        callers[i] = (Caller){&own[i], 1, 0};
        pthread_create(&who[i], NULL, call_often, &callers[i]);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(who[i], NULL);
        expect(!callers[i].busy && same_bits(&own[i], &alone), "other bits", "own sessions");
        free_run(&own[i]);
    }
    int busy = 0;
    for (int round = 0; round < 1000 && !busy; round++) {
        Run shared = new_run(o.model, &m.plan, threads, NULL, 5);
        double seconds[RETNET_STAGES];
        for (int i = 0; i < 3; i++) {
            callers[i] = (Caller){&shared, 0, 0};
            pthread_create(&who[i], NULL, call_often, &callers[i]);
        }
        for (int i = 0; i < 100; i++) {
            const retnet_status status = retnet_session_seconds(shared.session, seconds);
            expect(status == RETNET_OK || status == RETNET_BUSY, "seconds' status", "callers");
        }
        for (int i = 0; i < 3; i++) {
            pthread_join(who[i], NULL);
            busy += callers[i].busy;
        }
        shared.logits = retnet_session_logits(shared.session);
        expect(!retnet_session_get_states(shared.session, shared.states,
                                          all_states(&m.plan) * sizeof(float)), "states", "callers");
        expect(same_bits(&shared, &queue), "other bits", "one session");
        free_run(&shared);
    }
    expect(busy, "nobody was ever told to wait", "callers");
    free_run(&alone), free_run(&queue);
    close_small(&o);
    free_small(&m);
}

/* A process that was forked off has none of the session's threads: it computes the same, and ends. */
static void check_fork(void) {
    uint64_t seed = 51;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Opened o;
    expect(!open_small(&m, &o, NULL), "a plan", "fork");
    const int32_t tokens[] = {1, 2, 3, 4};
    Run first = new_run(o.model, &m.plan, 3, NULL, 0), again = new_run(o.model, &m.plan, 3, NULL, 0);
    expect(!feed(&first, tokens, 4), "a status", "fork");
    const pid_t child = fork();
    if (!child) {
        alarm(60);
        const int wrong = feed(&again, tokens, 4) || !same_bits(&first, &again) ||
                          retnet_session_free(again.session) != RETNET_OK;
        _exit(wrong);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(status == 0, "the child", "fork");
    free_run(&first), free_run(&again);
    close_small(&o);
    free_small(&m);
}

/* Two sequences that were one, and a model that its user has closed before they end. */
static void check_forked_session(void) {
    uint64_t seed = 61;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Opened o;
    expect(!open_small(&m, &o, NULL), "a plan", "forked");
    Run first = new_run(o.model, &m.plan, 2, NULL, 3), second = new_run(o.model, &m.plan, 1, NULL, 3);
    expect(!feed(&first, TOKENS, 3), "a status", "forked");
    retnet_session_free(second.session);
    expect(!retnet_session_fork(first.session, &second.session, NULL), "a status", "forked");
    const uint8_t *seen = retnet_session_seen(second.session);
    for (int i = 0; i < m.plan.vocab_size; i++)
        expect(seen[i] == (i == 7 || i == 1 || i == 60), "what was seen", "forked");
    retnet_model_close(o.model);
    o.model = NULL;
    expect(!memcmp(retnet_session_logits(second.session), first.logits,
                   sizeof(float) * (size_t)m.plan.vocab_size), "logits", "forked");
    expect(!feed(&second, TOKENS, 2), "a status", "forked");
    expect(!same_bits(&first, &second), "the fork is the same sequence", "forked");
    expect(!feed(&first, TOKENS, 2) && same_bits(&first, &second), "other bits", "forked");
    expect(!retnet_session_reset(first.session) && !retnet_session_position(first.session) &&
               !retnet_session_logits(first.session) && !retnet_session_seen(first.session)[7],
           "a reset session", "forked");
    free_run(&first), free_run(&second);
    close_small(&o);
    free_small(&m);
}

int main(void) {
    for (int threads = 1; threads <= 3; threads++) check_callers(threads);
    check_fork();
    check_forked_session();
    return failures > 0;
}
