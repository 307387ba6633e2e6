#include "napi/file_system.h"

#include <sys/file.h>
#ifdef __linux__
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cerrno>
#include <string>
#include <system_error>

#include "core/error.h"
#include "napi/convert.h"

namespace limbeck {

Napi::Value try_lock_file(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const auto fd = static_cast<int>(to_integer(info[0], "fd", 0, kMaxInt32));
    int status;
    do {
      status = flock(fd, LOCK_EX | LOCK_NB);
    } while (status != 0 && errno == EINTR);
    if (status != 0 && errno != EWOULDBLOCK) {
      throw Error("ERR_IO", "Cannot lock the file: " + std::system_category().message(errno) + ".");
    }
    return Napi::Boolean::New(info.Env(), status == 0);
  });
}

Napi::Value exchange_names(const Napi::CallbackInfo& info) {
  return with_js_errors(info.Env(), [&] {
    const std::string a = to_string(info[0], "a"), b = to_string(info[1], "b");
#if defined(__linux__) && defined(SYS_renameat2)
    constexpr unsigned kExchange = 2;  // RENAME_EXCHANGE, which older headers lack
    if (syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), kExchange) == 0) {
      return Napi::Boolean::New(info.Env(), true);
    }
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) {
      throw Error("ERR_IO",
                  "Cannot put '" + a + "' in the place of '" + b + "': " + std::system_category().message(errno) + ".");
    }
#endif
    return Napi::Boolean::New(info.Env(), false);
  });
}

}  // namespace limbeck
