#define _GNU_SOURCE
#include "pool.h"

#include <stdatomic.h>
#include <stdint.h>

#include "platform.h"
#include "threads.h"

enum { SPIN_LIMIT = 2000, SPINS_BEFORE_YIELD = 2000 };

typedef struct {
    Pool *pool;
    int index;
    Thread thread;
} Worker;

struct Pool {
    /* (number of the task << 32) | next chunk: a claim holds only for the task that it was made in
     */
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) atomic_int done;
    _Alignas(64) atomic_int sleeping;
    atomic_int closing;
    Task task;
    void *arg;
    atomic_int chunks;
    int workers;
    long process; /* that the threads are in */
    Lock lock;
    Condition wake;
    Worker each[];
};

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint32_t task_number(uint64_t ticket) { return (uint32_t)(ticket >> 32); }

/* Chunks of task `number` until none is left. A claim that succeeds keeps the caller in
 * `pool_run`, so task, arg and chunks are those of `number` for as long as they are read. */
static void run_chunks(Pool *pool, uint32_t number, int thread) {
    uint64_t ticket = atomic_load(&pool->ticket);
    while (task_number(ticket) == number) {
        int chunk = (int)(uint32_t)ticket;
        if (chunk >= atomic_load(&pool->chunks)) return;
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) continue;
        pool->task(pool->arg, chunk, thread);
        atomic_fetch_add(&pool->done, 1);
        ticket = atomic_load(&pool->ticket);
    }
}

static void wait_for_next_task(Pool *pool, uint32_t number) {
    lock_take(&pool->lock);
    while (task_number(atomic_load(&pool->ticket)) == number && !atomic_load(&pool->closing)) {
        atomic_store(&pool->sleeping, 1);
        if (task_number(atomic_load(&pool->ticket)) != number) break;
        condition_wait(&pool->wake, &pool->lock);
    }
    lock_give(&pool->lock);
}

static ThreadResult THREAD_CALL worker(void *arg) {
    const Worker *self = arg;
    Pool *pool = self->pool;
    uint32_t seen = 0;
    while (!atomic_load(&pool->closing)) {
        uint32_t number = seen;
        for (int spin = 0; spin < SPIN_LIMIT && number == seen; spin++) {
            cpu_relax();
            number = task_number(atomic_load(&pool->ticket));
        }
        if (number == seen) {
            wait_for_next_task(pool, seen);
            continue;
        }
        seen = number;
        run_chunks(pool, number, self->index);
    }
    return 0;
}

static void wake_all(Pool *pool) {
    lock_take(&pool->lock);
    atomic_store(&pool->sleeping, 0);
    condition_wake_all(&pool->wake);
    lock_give(&pool->lock);
}

Pool *pool_new(int threads) {
    int workers = threads - 1;
    const uint64_t size = sizeof(Pool) + (uint64_t)workers * sizeof(Worker);
    Pool *pool = allocate_aligned(size);
    if (!pool) return NULL;
    *pool = (Pool){.workers = 0, .process = this_process()};
    lock_init(&pool->lock);
    condition_init(&pool->wake);
    for (; pool->workers < workers; pool->workers++) {
        Worker *next = &pool->each[pool->workers];
        *next = (Worker){.pool = pool, .index = pool->workers + 1};
        if (!start_thread(&next->thread, worker, next)) {
            pool_free(pool);
            return NULL;
        }
    }
    return pool;
}

void pool_free(Pool *pool) {
    /* elsewhere there is no thread to wait for, and the lock is as it was in the middle of things */
    if (pool->process == this_process()) {
        atomic_store(&pool->closing, 1);
        wake_all(pool);
        for (int i = 0; i < pool->workers; i++) join_thread(pool->each[i].thread);
        condition_free(&pool->wake);
        lock_free(&pool->lock);
    }
    free_aligned(pool);
}

void pool_enter(Pool *pool) {
    if (pool->workers && pool->process != this_process()) pool->workers = 0;
}

void pool_run(Pool *pool, Task task, void *arg, int chunks) {
    if (!pool->workers || chunks == 1) {
        for (int chunk = 0; chunk < chunks; chunk++) task(arg, chunk, 0);
        return;
    }
    pool->task = task;
    pool->arg = arg;
    atomic_store(&pool->done, 0);
    /* no chunk is claimed between these: the old task's are used up, the new one's not offered */
    uint32_t number = task_number(atomic_load(&pool->ticket)) + 1;
    atomic_store(&pool->ticket, (uint64_t)number << 32 | UINT32_MAX / 2);
    atomic_store(&pool->chunks, chunks);
    atomic_store(&pool->ticket, (uint64_t)(number + 1) << 32);
    if (atomic_load(&pool->sleeping)) wake_all(pool);
    run_chunks(pool, number + 1, 0);
    for (int spin = 0; atomic_load(&pool->done) < chunks; spin++) {
        if (spin < SPINS_BEFORE_YIELD) cpu_relax();
        else yield_thread();
    }
}
