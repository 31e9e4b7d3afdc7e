/* A seccomp filter of the guest's own: it may be installed and obeyed, or refused; nothing else changes. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

int main(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPROTO),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getuid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    int before = prctl(PR_GET_SECCOMP);
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
            _exit(errno == ENOSYS || errno == EINVAL || errno == EACCES ? 2 : 3);
        FAILS(syscall(SYS_getppid), EPROTO);
        CHECK(prctl(PR_GET_SECCOMP) == 2);
        pid_t heir = fork();
        if (heir == 0)
            _exit(prctl(PR_GET_SECCOMP) == 2 ? 7 : 8);
        int end;
        CHECK(waitpid(heir, &end, 0) == heir && WEXITSTATUS(end) == 7);
        syscall(SYS_getuid);
        _exit(4);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(prctl(PR_GET_SECCOMP) == before);
    note("status %x\n", status);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) || (WIFEXITED(status) && WEXITSTATUS(status) == 2));
    return done();
}
