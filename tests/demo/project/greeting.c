#include "greeting.h"
#include "stamp.h"

const char *greeting(void)
{
    return "built " __DATE__ " " __TIME__ " (" BUILT_AT ") in " __FILE__ " by " BUILT_BY "@" BUILT_ON
           ", build " BUILD_ID;
}
