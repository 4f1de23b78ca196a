/* From a table or a plan that nobody has checked to a model that the kernels can run. */
#ifndef RETNET_TABLE_H
#define RETNET_TABLE_H

#include "model.h"
#include "plan.h"
#include "retnet.h"

/* The plan that a model table's bytes (8-byte aligned) hold, on `weights`; it points into both.
 * RETNET_OK, or RETNET_BAD_FILE with a sentence in `error` (size bytes). */
int read_table(Bytes table, Bytes weights, ModelPlan *plan, char *error, size_t size);

/* Fill in `model`, whose layers, gammas and frequencies are copies for `free_model`. RETNET_OK,
 * RETNET_NO_MEMORY, or RETNET_BAD_FILE with a sentence in `error` (size bytes). */
int check_plan(const ModelPlan *plan, Model *model, char *error, size_t size);
void free_model(Model *model);

#endif
