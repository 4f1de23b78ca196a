/* What ARM processors with dot products have in common: how a function asks for instructions that
 * not every one has, and how the operating system says that they are there. The instructions are
 * asked for function by function, so that one library runs on all. */

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* GCC takes an intrinsic only into a function of an architecture that holds the intrinsic's whole;
 * Clang before 16 knows no architectures here, and later ones both. */
#if defined(__clang__)
#define ARM_TARGET(extension) __attribute__((target(extension)))
#else
#define ARM_TARGET(extension) __attribute__((target("arch=armv8.2-a+" extension)))
#endif

/* Clang before 16 (Apple's counts otherwise) declares the intrinsics only where a whole file is
 * compiled for them. */
#if defined(__clang__) && __clang_major__ < 17
#define ARM_ASSEMBLY 1
#else
#define ARM_ASSEMBLY 0
#endif

/* `bit` of AT_HWCAP or AT_HWCAP2 (the kernel's numbers, which do not change; old headers lack
 * them), `name` of Apple's sysctl. Elsewhere: no. */
static int arm_has(unsigned long capabilities, int bit, const char *name) {
#if defined(__linux__)
    (void)name;
    return (getauxval(capabilities) >> bit & 1) != 0;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    (void)capabilities, (void)bit;
    return !sysctlbyname(name, &found, &size, NULL, 0) && found;
#else
    (void)capabilities, (void)bit, (void)name;
    return 0;
#endif
}

static int has_dotprod(void) { return arm_has(16, 20, "hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return arm_has(26, 13, "hw.optional.arm.FEAT_I8MM"); }
