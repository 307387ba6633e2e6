#include "napi/text_batch.h"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include "napi/convert.h"

namespace limbeck {

std::vector<std::string> TextBatch::answer(Retriever& retriever) const {
  if (names->num_items() < retriever.num_items()) invalid("Items must be named before requests come as text.");
  const auto size = static_cast<size_t>(requests.size());
  std::vector<std::string> texts(size);
  if (size == 0) return texts;
  const auto k = static_cast<size_t>(requests.largest_k());
  std::vector<int32_t> item_ids(size * k);
  std::vector<float> scores(size * k);
  const HistoryBatch batch{requests.histories.data(), requests.offsets.data(), requests.size(), requests.exclude.data(),
                           requests.exclude_offsets.data()};
  retriever.recommend_batch(batch, {}, {}, static_cast<int64_t>(k), item_ids.data(), scores.data());
  for (size_t i = 0; i < size; ++i) {
    append_answer(*names, item_ids.data() + i * k, scores.data() + i * k, requests.k[i], requests.unknown[i], texts[i]);
  }
  return texts;
}

TextBatch read_text_batch(const Napi::Value& texts, const Napi::Value& max_k, const Napi::Value& rows,
                          std::shared_ptr<const ItemNames> names) {
  if (!texts.IsArray()) invalid("Expected texts to be a list of Uint8Array.");
  if (names == nullptr) invalid("Items must be named before requests come as text.");
  const Napi::Array list = texts.As<Napi::Array>();
  const auto limit = static_cast<int32_t>(to_integer(max_k, "maxK", 1, kMaxInt32));
  TextBatch batch;
  batch.names = std::move(names);
  std::vector<int32_t> row_of;  // each text
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Value text = list[i];
    if (!text.IsTypedArray() || text.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      invalid("Expected texts to be a list of Uint8Array.");
    }
    const auto bytes = text.As<Napi::Uint8Array>();
    const std::string_view view(reinterpret_cast<const char*>(bytes.Data()), bytes.ByteLength());
    const auto row = static_cast<int32_t>(batch.requests.size());
    row_of.push_back(append_plain_request(view, *batch.names, limit, batch.requests) ? row : -1);
  }
  const ArrayView<int32_t> told = int32_view(rows, "rows");
  check_count("rows", told.count, static_cast<int64_t>(row_of.size()));
  std::copy(row_of.begin(), row_of.end(), told.data);
  return batch;
}

Napi::Array new_string_array(Napi::Env env, const std::vector<std::string>& texts) {
  const Napi::Array array = Napi::Array::New(env, texts.size());
  for (size_t i = 0; i < texts.size(); ++i) array.Set(static_cast<uint32_t>(i), Napi::String::New(env, texts[i]));
  return array;
}

}  // namespace limbeck
