/* What the C and Go halves of the library need of each other. */
#ifndef PSTORAGE_GLUE_H
#define PSTORAGE_GLUE_H

#include "pstorage.h"

void psSetError(const char *text);
void psCallDone(ps_op *op);

#endif
