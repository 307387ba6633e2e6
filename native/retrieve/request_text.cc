#include "retrieve/request_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

namespace limbeck {

namespace {

constexpr int32_t kDefaultK = 10;
constexpr int64_t kMaxNames = 1000;
constexpr size_t kMaxNameSize = 256;

/// Reads JSON text from left to right. What take_…() does not find leaves the reader anywhere.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) {}

  bool is_at_end() {
    skip_whitespace();
    return at_ == end_;
  }

  bool take(char token) {
    skip_whitespace();
    if (at_ == end_ || *at_ != token) return false;
    ++at_;
    return true;
  }

  /// A string of ASCII without escapes, which lies in the text: `quoted` is it with its quotes.
  bool take_plain_string(std::string_view& quoted) {
    if (!take('"')) return false;
    const char* begin = at_ - 1;
    while (at_ != end_ && *at_ >= ' ' && *at_ <= '~' && *at_ != '"' && *at_ != '\\') ++at_;
    if (at_ == end_ || *at_ != '"') return false;
    ++at_;
    quoted = {begin, static_cast<size_t>(at_ - begin)};
    return true;
  }

  /// Digits alone: 1 to `limit`.
  bool take_count(int32_t limit, int32_t& count) {
    skip_whitespace();
    if (at_ == end_ || *at_ < '1' || *at_ > '9') return false;
    int64_t value = 0;
    for (; at_ != end_ && *at_ >= '0' && *at_ <= '9'; ++at_) {
      value = 10 * value + (*at_ - '0');
      if (value > limit) return false;
    }
    count = static_cast<int32_t>(value);
    return true;
  }

 private:
  void skip_whitespace() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }

  const char* at_;
  const char* end_;
};

/// A list of names: their items go to `ids`, names that no item has to `unknown` where it is given.
bool take_names(JsonReader& reader, const ItemNames& names, std::vector<int32_t>& ids, std::string* unknown) {
  if (!reader.take('[')) return false;
  if (reader.take(']')) return true;
  for (int64_t i = 0; i < kMaxNames; ++i) {
    std::string_view quoted;
    if (!reader.take_plain_string(quoted)) return false;
    const std::string_view name(quoted.data() + 1, quoted.size() - 2);
    if (name.empty() || name.size() > kMaxNameSize) return false;
    const int32_t id = names.find(name);
    if (id >= 0) {
      ids.push_back(id);
    } else if (unknown != nullptr) {
      if (!unknown->empty()) *unknown += ',';
      *unknown += quoted;
    }
    if (reader.take(']')) return true;
    if (!reader.take(',')) return false;
  }
  return false;
}

/// The lists go to the end of those of `requests`.
bool take_request(JsonReader& reader, const ItemNames& names, int32_t max_k, TextRequests& requests, int32_t& k,
                  std::string& unknown) {
  bool has_history = false, has_k = false, has_exclude = false;
  if (!reader.take('{')) return false;
  do {
    std::string_view key;
    if (!reader.take_plain_string(key) || !reader.take(':')) return false;
    bool is_taken = false;
    if (key == "\"history\"" && !has_history) {
      has_history = true;
      is_taken = take_names(reader, names, requests.histories, &unknown);
    } else if (key == "\"k\"" && !has_k) {
      has_k = true;
      is_taken = reader.take_count(max_k, k);
    } else if (key == "\"exclude\"" && !has_exclude) {
      has_exclude = true;
      is_taken = take_names(reader, names, requests.exclude, nullptr);
    }
    if (!is_taken) return false;
  } while (reader.take(','));
  return reader.take('}') && reader.is_at_end();
}

char* write(std::string_view text, char* out) { return std::copy(text.begin(), text.end(), out); }

constexpr size_t kMaxNumberSize = 32;

/// As JavaScript writes a number in JSON (ECMAScript, Number::toString): at most kMaxNumberSize characters. Returns
/// their end.
char* write_number(double value, char* out) {
  if (!std::isfinite(value)) return write("null", out);
  if (value == 0) return write("0", out);  // −0, too
  if (value < 0) *out++ = '-';
  char shortest[kMaxNumberSize];  // d.ddde±xx
  const char* end =
      std::to_chars(shortest, shortest + sizeof shortest, std::abs(value), std::chars_format::scientific).ptr;
  const char* e = end - 4;
  while (*e != 'e') --e;
  int exponent = 0;
  std::from_chars(e[1] == '+' ? e + 2 : e + 1, end, exponent);
  const int before_point = exponent + 1;
  if (before_point > 21 || before_point <= -6) {
    out = write({shortest, static_cast<size_t>(e - shortest)}, out);
    out = write(exponent < 0 ? "e-" : "e+", out);
    return std::to_chars(out, out + 3, std::abs(exponent)).ptr;
  }

  const std::string_view first(shortest, 1);
  const std::string_view others = e - shortest == 1 ? "" : std::string_view(shortest + 2, e - shortest - 2);
  if (before_point <= 0) {
    out = std::fill_n(write("0.", out), -before_point, '0');
    return write(others, write(first, out));
  }
  out = write(first, out);
  const auto num_whole = static_cast<size_t>(before_point - 1);  // of the other digits
  if (num_whole >= others.size()) return std::fill_n(write(others, out), num_whole - others.size(), '0');
  out = write(others.substr(0, num_whole), out);
  *out++ = '.';
  return write(others.substr(num_whole), out);
}

}  // namespace

int32_t TextRequests::largest_k() const { return k.empty() ? 0 : *std::max_element(k.begin(), k.end()); }

bool append_plain_request(std::string_view text, const ItemNames& names, int32_t max_k, TextRequests& requests) {
  const size_t num_before = requests.histories.size(), num_excluded_before = requests.exclude.size();
  JsonReader reader(text);
  int32_t k = kDefaultK;
  std::string unknown;
  if (!take_request(reader, names, max_k, requests, k, unknown) || requests.histories.size() == num_before) {
    requests.histories.resize(num_before);
    requests.exclude.resize(num_excluded_before);
    return false;
  }
  requests.offsets.push_back(static_cast<int32_t>(requests.histories.size()));
  requests.exclude_offsets.push_back(static_cast<int32_t>(requests.exclude.size()));
  requests.k.push_back(k);
  requests.unknown.push_back(std::move(unknown));
  return true;
}

void append_answer(const ItemNames& names, const int32_t* item_ids, const float* scores, int64_t count,
                   const std::string& unknown, std::string& text) {
  constexpr std::string_view kItems = "\"items\":[",
                             kId = "{\"id\":", kScore = ",\"score\":", kUnknownItems = "],\"unknownItems\":[";
  count = std::find_if(item_ids, item_ids + count, [](int32_t id) { return id < 0; }) - item_ids;
  size_t most = text.size() + kItems.size() + kUnknownItems.size() + unknown.size() + 1;
  for (int64_t i = 0; i < count; ++i) {
    most += kId.size() + names.json_string(item_ids[i]).size() + kScore.size() + kMaxNumberSize + 2;
  }
  const size_t size_before = text.size();
  text.resize(most);
  char* out = &text[size_before];
  out = write(kItems, out);
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) *out++ = ',';
    out = write(kId, out);
    out = write(names.json_string(item_ids[i]), out);
    out = write(kScore, out);
    out = write_number(scores[i], out);
    *out++ = '}';
  }
  out = write(kUnknownItems, out);
  out = write(unknown, out);
  *out++ = ']';
  text.resize(static_cast<size_t>(out - text.data()));
}

}  // namespace limbeck
