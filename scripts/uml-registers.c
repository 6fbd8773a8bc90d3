/* Loaded before User-Mode Linux 6.1 (LD_PRELOAD): lets it set a process' extended registers on processors that have more of
 * them than it knows of (AMX). The kernel outside takes the whole set or none, and the kernel inside gives what fits into a
 * buffer of its own size, so that it would die before its init. What it gives is laid over what the process has. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long call(long request, pid_t pid, void *address, void *data) {
    return syscall(SYS_ptrace, request, pid, address, data);
}

long ptrace(enum __ptrace_request request, ...) {
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        static __thread char whole[64 << 10];
        struct iovec *given = data, all = {whole, sizeof whole};
        if (call(PTRACE_GETREGSET, pid, address, &all) != 0)
            return -1;
        if (all.iov_len > given->iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            return call(PTRACE_SETREGSET, pid, address, &all);
        }
    }
    /* As the C library does it: a word is the answer, not something written. */
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long word = 0, failed = call(request, pid, address, &word);
        if (failed < 0)
            return failed;
        errno = 0;
        return word;
    }
    return call(request, pid, address, data);
}
