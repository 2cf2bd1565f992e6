/* The calls that only have to wait while the gate is closed. */
#include "entries.h"
#include "gate.h"

#define PASS(symbol, name, version, which, parameters, arguments)                                  \
    int symbol parameters {                                                                        \
        int result;                                                                                \
                                                                                                   \
        REAL(symbol);                                                                              \
        gate_enter();                                                                              \
        result = driver.symbol arguments;                                                          \
        gate_leave();                                                                              \
        return result;                                                                             \
    }

GATED(PASS)
