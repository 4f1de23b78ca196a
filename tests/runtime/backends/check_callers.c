/* Several threads on one engine, and a process that was forked off. Built and run by
 * test_native_kernels.py; writes what is wrong, and exits with 1. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_checks.h"

typedef struct {
    Engine *engine;
    Run run;
    int64_t first;
    int busy;
} Caller;

enum { CALLS = 60 };

/* Its own sequence, on the engine that others call too: again where it was busy. */
static void *call_often(void *arg) {
    Caller *c = arg;
    for (int64_t i = 0; i < CALLS;) {
        const int64_t tokens[] = {(c->first + i) % BASE.vocab, i, 7};
        const int status = feed(c->engine, &c->run, tokens, 3, 3 * i);
        if (status == RETNET_OK) i++;
        else if (status == RETNET_BUSY) c->busy++;
        else expect(0, "a status", "callers");
    }
    return NULL;
}

static void check_callers(int threads) {
    uint64_t seed = 41;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Engine *engine;
    expect(!retnet_new(&m.plan, threads, NULL, &engine, NULL, 0), "a plan", "callers");
    Caller alone[3], together[3];
    for (int i = 0; i < 3; i++) {
        alone[i] = (Caller){engine, new_run(&m.plan), i, 0};
        together[i] = (Caller){engine, new_run(&m.plan), i, 0};
        call_often(&alone[i]);
        expect(!alone[i].busy, "busy without others", "callers");
    }
    int busy = 0;
    for (int round = 0; round < 1000 && !busy; round++) {
        pthread_t callers[3];
        double seconds[RETNET_STAGES];
        for (int i = 0; i < 3; i++) {
            free_run(&together[i].run);
            together[i].run = new_run(&m.plan);
            pthread_create(&callers[i], NULL, call_often, &together[i]);
        }
        for (int i = 0; i < 100; i++) {
            const int status = retnet_seconds(engine, seconds);
            expect(status == RETNET_OK || status == RETNET_BUSY, "seconds' status", "callers");
        }
        for (int i = 0; i < 3; i++) {
            pthread_join(callers[i], NULL);
            busy += together[i].busy;
            expect(same_bits(&alone[i].run, &together[i].run), "other bits", "callers");
        }
    }
    expect(busy, "nobody was ever told to wait", "callers");
    for (int i = 0; i < 3; i++) free_run(&alone[i].run), free_run(&together[i].run);
    retnet_free(engine);
    free_small(&m);
}

/* A process that was forked off has none of the engine's threads: it computes the same, and ends. */
static void check_fork(void) {
    uint64_t seed = 51;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Engine *engine;
    expect(!retnet_new(&m.plan, 3, NULL, &engine, NULL, 0), "a plan", "fork");
    const int64_t tokens[] = {1, 2, 3, 4};
    Run first = new_run(&m.plan), again = new_run(&m.plan);
    expect(!feed(engine, &first, tokens, 4, 0), "a status", "fork");
    const pid_t child = fork();
    if (!child) {
        alarm(60);
        const int wrong = feed(engine, &again, tokens, 4, 0) || !same_bits(&first, &again) ||
                          retnet_free(engine);
        _exit(wrong);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(status == 0, "the child", "fork");
    free_run(&first), free_run(&again);
    retnet_free(engine);
    free_small(&m);
}

int main(void) {
    for (int threads = 1; threads <= 3; threads++) check_callers(threads);
    check_fork();
    return failures > 0;
}
