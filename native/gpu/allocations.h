/* Memory that cuMemAlloc gives. */
#pragma once

#include "driver.h"

#include <stdbool.h>

/* Memory of the context has gone with it. */
void free_all_of(context gone);

/* Lets go of what was freed during a capture, if there is none any more. */
void free_postponed(void);

/* The device's unit of VMM memory, in bytes, a power of two; 0: it has none, or it is not known. */
size_t granularity_of(int device);
