/* The end of this process, and who clears its memory away. */
#ifndef PYXC_SHIM_PROCESS_H
#define PYXC_SHIM_PROCESS_H

#include <limits.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What is freed is kept for what is allocated next: giving it back to the system, and having it anew, takes longer. */
static void pyxc_keep_freed_memory(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that it takes */
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
}

struct pyxc_last_user {
    pid_t before; /* whose memory this is */
};

/*
 * Of the new process, which shares all memory with the one before: only system calls, as even errno is the other's.
 * No library function that waits: those look at the calling thread's own data, which is the other's, too.
 */
static int pyxc_be_last_user(void *argument)
{
    const struct pyxc_last_user *last = argument;
    const struct sched_param none = { 0 };

    syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &none); /* nobody waits for this one */
    syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    while ( syscall(SYS_getppid) == last->before )
        syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0); /* until that signal */
    syscall(SYS_exit_group, 0);
    return 0;
}

/*
 * Close all descriptors, and start a process that has this one's memory, and ends after it. From then on this process
 * may only end: -1 and errno where there is no such process; descriptors are closed all the same.
 */
static int pyxc_leave_memory_behind(void)
{
    static char stack[16384] __attribute__((aligned(16)));
    static struct pyxc_last_user last;
    sigset_t all;

#ifdef SYS_close_range
    if ( syscall(SYS_close_range, 0U, ~0U, 0U) )
        return -1;
#else
    errno = ENOSYS;
    return -1;
#endif
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    last.before = getpid();
    return clone(pyxc_be_last_user, stack + sizeof(stack), CLONE_VM | SIGCHLD, &last);
}

#endif
