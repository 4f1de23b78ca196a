/* From a plan that nobody has checked to a model that the kernels can run. */
#ifndef RETNET_CHECK_H
#define RETNET_CHECK_H

#include "model.h"
#include "retnet.h"

/* Fill in `model`, whose layers, gammas and frequencies are copies for `free_model`. RETNET_OK,
 * RETNET_NO_MEMORY, or RETNET_BAD_PLAN with a sentence in `error` (size bytes). */
int check_plan(const ModelPlan *plan, Model *model, char *error, size_t size);
void free_model(Model *model);

#endif
