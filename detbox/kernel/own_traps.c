/* The supervisor's own instructions that trap as the guest's do. */

#define ARCH_SET_CPUID 0x1012

static void execute_cpuid(greg_t *g)
{
	unsigned a = (unsigned)g[REG_RAX], b, c = (unsigned)g[REG_RCX], d;
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
	g[REG_RAX] = a;
	g[REG_RBX] = b;
	g[REG_RCX] = c;
	g[REG_RDX] = d;
}

static void execute_rdtsc(greg_t *g, int with_processor)
{
	unsigned a, c, d;
	prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0);
	if (with_processor) {
		__asm__ volatile("rdtscp" : "=a"(a), "=c"(c), "=d"(d));
		g[REG_RCX] = c;
	} else {
		__asm__ volatile("rdtsc" : "=a"(a), "=d"(d));
	}
	prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0);
	g[REG_RAX] = a;
	g[REG_RDX] = d;
}

static void on_own_trap(int sig, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	const unsigned char *code = (const unsigned char *)g[REG_RIP];
	int ours = info->si_code == SI_KERNEL && code[0] == 0x0f, saved = errno;
	if (ours && code[1] == 0xa2) {
		execute_cpuid(g);
		g[REG_RIP] += 2;
	} else if (ours && code[1] == 0x31) {
		execute_rdtsc(g, 0);
		g[REG_RIP] += 2;
	} else if (ours && code[1] == 0x01 && code[2] == 0xf9) {
		execute_rdtsc(g, 1);
		g[REG_RIP] += 3;
	} else {
		signal(sig, SIG_DFL); /* a real fault: it happens again, and kills */
	}
	errno = saved;
}

/* trap_like_guest(cpuid): this thread's rdtsc, and with `cpuid` that too, faults from now on as the guest's does, and is
 * executed by a signal handler.  Of no use by itself, but at every switch between two threads that differ in this the kernel
 * writes a control register (__switch_to_xtra() in arch/x86/kernel/process.c).  A virtual machine may have to ask its host for
 * that, twice a call: 4.4 us each for rdtsc (AMD; Intel's need not), 3.5 us for cpuid. */
static PyObject *trap_like_guest(PyObject *self, PyObject *args)
{
	struct sigaction sa;
	int cpuid;
	if (!PyArg_ParseTuple(args, "p", &cpuid)) return NULL;
	memset(&sa, 0, sizeof sa);
	sa.sa_sigaction = on_own_trap;
	sa.sa_flags = SA_SIGINFO | SA_NODEFER;
	if (sigaction(SIGSEGV, &sa, NULL) || prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0)) return fail();
	if (cpuid && syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) return fail();
	Py_RETURN_NONE;
}
