/* Hide AVX-512, VNNI, bfloat16 and AMX from a program, to see how it runs on a processor that has only AVX2.

       cc -O2 -shared -fPIC -o hide_avx512.so benchmarks/hide_avx512.c
       LD_PRELOAD=$PWD/hide_avx512.so embedcli bench rows.jsonl

   The settings of libraries are not enough: with ONEDNN_MAX_CPU_ISA=AVX2, OpenVINO's MLAS kernels still use AVX-512.
   Here the kernel makes the instruction CPUID fail (arch_prctl, ARCH_SET_CPUID; Linux on x86-64, where /proc/cpuinfo
   has the flag cpuid_fault), and the signal handler answers in its place, without those instructions. Programs that
   are started inherit it. The C library looked before this file was loaded, so it still copies memory with AVX-512.
   Handlers that the program sets for SIGSEGV are ignored. /proc/cpuinfo still names what the processor has, and the
   path of the library must not have a space. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* Leaf 7, subleaf 0. Names and bits as in Intel's manual, volume 2A, CPUID. */
static const uint32_t EBX_0 = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const uint32_t ECX_0 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const uint32_t EDX_0 = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
/* Leaf 7, subleaf 1: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AVX10. */
static const uint32_t EAX_1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const uint32_t EDX_1 = BIT(4) | BIT(5) | BIT(10) | BIT(19);

static long allow_cpuid(unsigned long allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

/* The C library's own sigaction. */
static int set_action(int signal_number, const struct sigaction *action, struct sigaction *old)
{
    int (*original)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    return original(signal_number, action, old);
}

int sigaction(int signal_number, const struct sigaction *action, struct sigaction *old)
{
    return set_action(signal_number, signal_number == SIGSEGV ? NULL : action, old);
}

__sighandler_t signal(int signal_number, __sighandler_t handler)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(signal_number, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

static void answer(int signal_number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
    uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    (void)info;
    if (instruction[0] != 0x0f || instruction[1] != 0xa2) { /* another fault, which happens again and ends the program */
        struct sigaction action = {.sa_handler = SIG_DFL};
        set_action(signal_number, &action, NULL);
        return;
    }
    allow_cpuid(1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
    allow_cpuid(0);
    if (leaf == 7 && subleaf == 0) {
        b &= ~EBX_0, c &= ~ECX_0, d &= ~EDX_0;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~EAX_1, d &= ~EDX_1;
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void)
{
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    set_action(SIGSEGV, &action, NULL);
    if (allow_cpuid(0) != 0) {
        fputs("hide_avx512: this kernel or processor cannot make CPUID fail\n", stderr);
        _exit(2);
    }
}
