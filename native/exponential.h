/* The exponential of sampling, the same bits here and in Python (runtime/text/exponential.py). */
#ifndef RETNET_EXPONENTIAL_H
#define RETNET_EXPONENTIAL_H

/* e^x for x <= 0, or NaN. */
double exponential(double x);

#endif
