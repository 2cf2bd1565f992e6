/*
 * GPUDirect Storage: files go into regions past this machine's memory, by NVIDIA's cuFile. Seen by
 * cffi, too: what thaw.h says of itself counts here.
 *
 * Without nvidia-fs cuFile has a mode of its own (compatibility) in which it reads through memory,
 * as fill.c does, only slower.
 */
#pragma once

#include "thaw.h"

/* cufile.c ----------------------------------------------------------------------------------- */

struct thaw_cufile;

/*
 * Loads cuFile and has it begin: for each GPU of the machine it makes a context for a moment, and it
 * starts threads. Unless `compatible`, it is told that nothing but GPUDirect will do, and asked
 * whether there is such a thing. Only one may be open in a process. It (1.14) never returns where
 * the kernel has no /proc/modules, which it reads until its end: see to that before. -ELIBACC, -ENOSYS as of
 * thaw_cuda_open; -ENOTSUP with a reason in `why`; above zero is what cuFile's function `*call` has
 * answered (CUfileOpError).
 */
int thaw_cufile_open(const char *library, int compatible, struct thaw_cufile **cufile,
                     const char **call, char *why, size_t size);

/* When there is no thaw_direct of it any more. The library stays loaded. */
void thaw_cufile_close(struct thaw_cufile *cufile);

/* direct.c ----------------------------------------------------------------------------------- */

struct thaw_direct;

/* Of every hundred bytes of the sources, how many are in the page cache, as far as samples tell. */
uint32_t thaw_direct_cached(const struct thaw_source *sources, size_t source_count);

/*
 * Makes the sources known to cuFile; they, and the extents, are used as by thaw_fill_open. Stages of
 * a failure are thaw_failure's, and 7: cuFile, with its answer and the name of its function. Zero,
 * or -EINVAL for nonsense, -ENOMEM, -EIO with a failure.
 */
int thaw_direct_open(struct thaw_cufile *cufile, const struct thaw_source *sources,
                     size_t source_count, const struct thaw_extent *extents, size_t count,
                     struct thaw_direct **direct, struct thaw_failure *failure);

/*
 * Reads all extents into regions of one thaw_device, with so many threads (0: chosen), and compares
 * all checksums, which the GPU finds: zero, -EINVAL before anything was begun, -EIO with a failure.
 * When it returns, nothing is being read any more. Once.
 */
int thaw_direct_run(struct thaw_direct *direct, struct thaw_region *const *regions,
                    size_t region_count, uint32_t threads, struct thaw_failure *failure);

/* Makes it fail soon, with ECANCELED; from any thread, at any time. */
void thaw_direct_cancel(struct thaw_direct *direct);

void thaw_direct_close(struct thaw_direct *direct);
