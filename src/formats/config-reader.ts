/** Typed reading of the keys of a `config.json`; every refusal names the file, the key, and the value. */
import { LimbeckError } from '../errors.js';

export class ConfigReader {
  private readonly values: Readonly<Record<string, unknown>>;
  private readonly seen = new Set<string>();

  /** `path` stands before keys in messages: `rope_scaling.` */
  constructor(
    json: object,
    private readonly file: string,
    private readonly path = '',
  ) {
    this.values = json as Record<string, unknown>;
  }

  /** @throws LimbeckError ERR_UNSUPPORTED_MODEL */
  refuse(key: string, value: unknown, expected: string): never {
    const shown = value === undefined ? 'no value' : String(JSON.stringify(value)).slice(0, 200);
    throw new LimbeckError(
      'ERR_UNSUPPORTED_MODEL',
      `'${this.file}': expected ${this.path}${key} to be ${expected}, got ${shown}`,
    );
  }

  /** An absent key is always allowed: absent means the plain behaviour. */
  only(key: string, allowed: readonly unknown[]): void {
    const value = this.get(key);
    if (value === undefined || allowed.includes(value)) return;
    this.refuse(key, value, allowed.map((one) => JSON.stringify(one)).join(' or '));
  }

  /** An integer in [min, max]; `null` counts as absent. */
  integer(key: string, min: number, max: number, fallback?: number): number {
    const value = this.get(key) ?? fallback;
    if (value === fallback && fallback !== undefined) return fallback;
    if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
      this.refuse(key, value, `an integer from ${min} to ${max}`);
    }
    return value as number;
  }

  /** The same, where `null` says that there is none: 0. */
  optionalInteger(key: string, min: number, max: number, fallback: number): number {
    return this.get(key) === null ? 0 : this.integer(key, min, max, fallback);
  }

  /** A number above 0 that is so in float32, too. */
  positive(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback;
    const float = typeof value === 'number' ? Math.fround(value) : 0;
    if (!Number.isFinite(float) || float <= 0) this.refuse(key, value, 'a number above 0 in float32');
    return value as number;
  }

  /** A number in [0, 1). */
  probability(key: string, fallback: number): number {
    const value = this.get(key) ?? fallback;
    if (typeof value !== 'number' || !(value >= 0 && value < 1)) this.refuse(key, value, 'a number from 0 up to 1');
    return value as number;
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback;
    if (typeof value !== 'boolean') this.refuse(key, value, 'true or false');
    return value as boolean;
  }

  /** Absent = []. */
  strings(key: string): string[] {
    const value = this.get(key) ?? [];
    if (!Array.isArray(value) || value.some((one) => typeof one !== 'string'))
      this.refuse(key, value, 'a list of strings');
    return value as string[];
  }

  /** One of the keys of `names`; the answer is its value. */
  choice<const T extends string>(key: string, names: Readonly<Record<string, T>>, fallback?: string): T {
    const value = this.get(key) ?? fallback;
    if (typeof value !== 'string' || !Object.hasOwn(names, value)) {
      this.refuse(key, value, `one of ${Object.keys(names).join(', ')}`);
    }
    return names[value as string] as T;
  }

  get isEmpty(): boolean {
    return Object.keys(this.values).length === 0;
  }

  /** An object of its own, read by a reader of its own; absent and `null` = none. */
  object(key: string): ConfigReader | undefined {
    const value = this.get(key) ?? undefined;
    if (value === undefined) return undefined;
    if (typeof value !== 'object' || Array.isArray(value)) this.refuse(key, value, 'an object');
    return new ConfigReader(value as object, this.file, `${this.path}${key}.`);
  }

  /** Refuses every key that was not read: it may change what the model computes. `null` says nothing. */
  refuseUnknown(harmless: ReadonlySet<string>): void {
    for (const [key, value] of Object.entries(this.values)) {
      if (value === null || value === undefined || this.seen.has(key) || harmless.has(key)) continue;
      const shown = String(JSON.stringify(value)).slice(0, 200);
      throw new LimbeckError(
        'ERR_UNSUPPORTED_MODEL',
        `'${this.file}': ${this.path}${key} = ${shown} is no known key of this family, and may change what the model ` +
          'computes. If it does not, remove it.',
      );
    }
  }

  private get(key: string): unknown {
    this.seen.add(key);
    return Object.hasOwn(this.values, key) ? this.values[key] : undefined;
  }
}
