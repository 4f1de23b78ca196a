#include "exponential.h"

#include <math.h>

/* x = k ln 2 + r with |r| <= ln(2) / 2, e^x = 2^k e^r, and e^r by its Taylor series to the 13th
 * power, whose rest is below 2^-56. Every operation is one that IEEE 754 rounds, in a stated order
 * (nothing is contracted: -ffp-contract=off), so that whoever does the same gets the same bits. A
 * library's own exp differs from the next one's in the last. */
double exponential(double x) {
    static const double COEFFICIENTS[] = {
        1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0,
        1 / 40320.0, 1 / 5040.0, 1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 0.5, 1, 1};
    if (x < -746) return 0;
    const double k = rint(x * 0x1.71547652b82fep+0);
    const double r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
    double sum = COEFFICIENTS[0];
    for (int i = 1; i < (int)(sizeof COEFFICIENTS / sizeof *COEFFICIENTS); i++)
        sum = sum * r + COEFFICIENTS[i];
    return x != x ? x : ldexp(sum, (int)k);
}
