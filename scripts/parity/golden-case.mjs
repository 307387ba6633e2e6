/**
 * What a golden folder expects, with the padding taken away: the product packs its sequences end to end.
 *
 * Letters: B sequences, T padded length, N unmasked tokens, H heads.
 */

/** A folder that is not laid out as expected. */
export class LayoutError extends Error {
  /**
   * @param {import('../../src/errors.js').LimbeckErrorCode} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** The tensors of `expected.safetensors`; those of shape [B, T, …] are read for unmasked tokens only. */
export class GoldenCase {
  #tensors;
  /** Rows of unmasked tokens in [B·T]. @type {number[]} */
  #tokens = [];
  /** Unmasked tokens a sequence. @type {number[]} */
  #lengths = [];
  /** T */
  #paddedLength;

  /** @param {ReadonlyMap<string, import('../../src/formats/safetensors.js').SafetensorsTensor>} tensors */
  constructor(tensors) {
    this.#tensors = tensors;
    const { data, shape } = this.tensor('attention_mask', 2);
    const [numSequences, paddedLength] = /** @type {[number, number]} */ (shape);
    this.#paddedLength = paddedLength;
    for (let s = 0; s < numSequences; s++) {
      const mask = Array.from(data.subarray(s * paddedLength, (s + 1) * paddedLength), Number);
      const length = mask.lastIndexOf(1) + 1;
      if (length === 0 || mask.slice(0, length).includes(0)) {
        throw new LayoutError('ERR_FILE_FORMAT', `attention_mask: expected ones, then padding, in sequence ${s}`);
      }
      this.#lengths.push(length);
      for (let t = 0; t < length; t++) this.#tokens.push(s * paddedLength + t);
    }
  }

  /** @returns {import('../../src/binding.js').PackedBatch} */
  get batch() {
    const offsets = new Int32Array(this.#lengths.length + 1);
    this.#lengths.forEach((length, s) => {
      offsets[s + 1] = Number(offsets[s]) + length;
    });
    return { inputIds: this.#integers('input_ids'), sequenceOffsets: offsets };
  }

  /** Target id a token, −100 = ignored. [N] */
  get labels() {
    return this.#integers('labels');
  }

  /** @param {string} prefix */
  names(prefix) {
    return [...this.#tensors.keys()].filter((name) => name.startsWith(prefix));
  }

  /**
   * @param {string} name
   * @param {number} [rank] Number of dimensions that it must have.
   */
  tensor(name, rank) {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) {
      throw new LayoutError('ERR_FILE_FORMAT', `expected.safetensors has no tensor '${name}'`);
    }
    if (rank !== undefined && tensor.shape.length !== rank) {
      const shape = `[${tensor.shape.join(', ')}]; expected ${rank} dimensions`;
      throw new LayoutError('ERR_FILE_FORMAT', `expected.safetensors has '${name}' of shape ${shape}`);
    }
    return tensor;
  }

  /** @param {string} name */
  values(name) {
    return /** @type {Float32Array} */ (this.tensor(name).data);
  }

  /**
   * Rows of unmasked tokens: [B, T, columns] → [N, columns].
   *
   * @param {string} name
   */
  rows(name) {
    const columns = Number(this.tensor(name, 3).shape[2]);
    const values = this.values(name);
    const rows = new Float32Array(this.#tokens.length * columns);
    this.#tokens.forEach((token, i) => {
      rows.set(values.subarray(token * columns, (token + 1) * columns), i * columns);
    });
    return rows;
  }

  /**
   * Attention among unmasked tokens: [B, H, T, T] → [H, t, t] end to end, t = length of the sequence.
   *
   * @param {string} name
   */
  maps(name) {
    const numHeads = Number(this.tensor(name, 4).shape[1]);
    const values = this.values(name);
    const maps = new Float32Array(this.#lengths.reduce((sum, t) => sum + numHeads * t * t, 0));
    let offset = 0;
    this.#lengths.forEach((t, s) => {
      for (let head = 0; head < numHeads; head++) {
        for (let query = 0; query < t; query++) {
          const start = ((s * numHeads + head) * this.#paddedLength + query) * this.#paddedLength;
          maps.set(values.subarray(start, start + t), offset);
          offset += t;
        }
      }
    });
    return maps;
  }

  /**
   * @param {string} name
   * @returns {Int32Array} Values of unmasked tokens of a tensor [B, T].
   */
  #integers(name) {
    const { data } = this.tensor(name, 2);
    return Int32Array.from(this.#tokens, (token) => Number(data[token]));
  }
}
