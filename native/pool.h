/* Threads that share the chunks of one task after another.
 *
 * Chunks are claimed one by one, so a thread that loses its core holds up one chunk, not a share of
 * the work. Inside a step, tasks follow each other within microseconds: a thread looks for the next
 * one for some 50 us before it sleeps, and sleeps while the caller does anything else. */
#ifndef RETNET_POOL_H
#define RETNET_POOL_H

typedef void (*Task)(void *arg, int chunk, int thread); /* thread: 0 is the caller */

typedef struct Pool Pool;

Pool *pool_new(int threads); /* the caller is one of them; NULL: out of memory or threads */
void pool_free(Pool *pool);

/* Before tasks follow: a process that was forked off has none of the threads, and does without. */
void pool_enter(Pool *pool);

/* Returns when all are done. One caller at a time: who shares a pool sees to that (session.c). */
void pool_run(Pool *pool, Task task, void *arg, int chunks);

#endif
