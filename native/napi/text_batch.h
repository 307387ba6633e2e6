#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "retrieve/item_names.h"
#include "retrieve/request_text.h"
#include "retrieve/retriever.h"

namespace limbeck {

/// Requests that came together as JSON text, of which the plain ones are packed.
struct TextBatch {
  TextRequests requests;
  std::shared_ptr<const ItemNames> names;

  /// The answers of the packed ones, as JSON. Any thread. Error("ERR_INVALID_ARGUMENT") where an item has no name.
  std::vector<std::string> answer(Retriever& retriever) const;
};

/// Reads a list of Uint8Array; what is in them may change as soon as this returns. JS runs where the list has getters.
/// @param rows Int32Array, one number a text: is told which answer is that of each, −1 = the text is not plain
TextBatch read_text_batch(const Napi::Value& texts, const Napi::Value& max_k, const Napi::Value& rows,
                          std::shared_ptr<const ItemNames> names);

Napi::Array new_string_array(Napi::Env env, const std::vector<std::string>& texts);

}  // namespace limbeck
