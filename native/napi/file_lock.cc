#include "napi/file_lock.h"

#include <sys/file.h>

#include <cerrno>
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

}  // namespace limbeck
