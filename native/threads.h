/* Threads, a lock and a condition: POSIX's or Windows'. For pool.c alone. */
#ifndef RETNET_THREADS_H
#define RETNET_THREADS_H

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <process.h>
#include <stdint.h>

typedef HANDLE Thread;
typedef CRITICAL_SECTION Lock;
typedef CONDITION_VARIABLE Condition;
typedef unsigned ThreadResult;
#define THREAD_CALL __stdcall

static inline int start_thread(Thread *thread, ThreadResult(THREAD_CALL *run)(void *), void *arg) {
    const uintptr_t handle = _beginthreadex(NULL, 0, run, arg, 0, NULL);
    *thread = (HANDLE)handle;
    return handle != 0;
}
static inline void join_thread(Thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}
static inline void yield_thread(void) { SwitchToThread(); }

static inline void lock_init(Lock *lock) { InitializeCriticalSection(lock); }
static inline void lock_free(Lock *lock) { DeleteCriticalSection(lock); }
static inline void lock_take(Lock *lock) { EnterCriticalSection(lock); }
static inline void lock_give(Lock *lock) { LeaveCriticalSection(lock); }

static inline void condition_init(Condition *condition) { InitializeConditionVariable(condition); }
static inline void condition_free(Condition *condition) { (void)condition; }
static inline void condition_wait(Condition *condition, Lock *lock) {
    SleepConditionVariableCS(condition, lock, INFINITE);
}
static inline void condition_wake_all(Condition *condition) { WakeAllConditionVariable(condition); }

/* Nothing forks: a process is always the one that its threads are in. */
static inline long this_process(void) { return 0; }

#else
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

typedef pthread_t Thread;
typedef pthread_mutex_t Lock;
typedef pthread_cond_t Condition;
typedef void *ThreadResult;
#define THREAD_CALL

/* 0 where there are no more threads. */
static inline int start_thread(Thread *thread, ThreadResult (*run)(void *), void *arg) {
    return pthread_create(thread, NULL, run, arg) == 0;
}
static inline void join_thread(Thread thread) { pthread_join(thread, NULL); }
static inline void yield_thread(void) { sched_yield(); }

static inline void lock_init(Lock *lock) { pthread_mutex_init(lock, NULL); }
static inline void lock_free(Lock *lock) { pthread_mutex_destroy(lock); }
static inline void lock_take(Lock *lock) { pthread_mutex_lock(lock); }
static inline void lock_give(Lock *lock) { pthread_mutex_unlock(lock); }

static inline void condition_init(Condition *condition) { pthread_cond_init(condition, NULL); }
static inline void condition_free(Condition *condition) { pthread_cond_destroy(condition); }
static inline void condition_wait(Condition *condition, Lock *lock) {
    pthread_cond_wait(condition, lock);
}
static inline void condition_wake_all(Condition *condition) { pthread_cond_broadcast(condition); }

static inline long this_process(void) { return (long)getpid(); }
#endif

#endif
