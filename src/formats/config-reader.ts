/** Typed reading of the keys of a `config.json`; every refusal names the file, the key, and the value. */
import { LimbeckError } from '../errors.js';

export class ConfigReader {
  private readonly values: Readonly<Record<string, unknown>>;

  constructor(
    json: object,
    private readonly file: string,
  ) {
    this.values = json as Record<string, unknown>;
  }

  /** @throws LimbeckError ERR_UNSUPPORTED_MODEL */
  refuse(key: string, value: unknown, expected: string): never {
    const shown = value === undefined ? 'no value' : String(JSON.stringify(value)).slice(0, 200);
    throw new LimbeckError('ERR_UNSUPPORTED_MODEL', `'${this.file}': expected ${key} to be ${expected}, got ${shown}`);
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

  /** A finite number above 0. */
  positive(key: string, fallback: number): number {
    const value = this.get(key) ?? fallback;
    if (typeof value !== 'number' || !Number.isFinite(value) || value <= 0) this.refuse(key, value, 'a number above 0');
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

  /** Base of the rotary frequencies: `rope_theta`, or the newer `rope_parameters.rope_theta`; no scaling. */
  ropeTheta(): number {
    let reader: ConfigReader = this;
    for (const key of ['rope_scaling', 'rope_parameters']) {
      const value = this.get(key) ?? undefined;
      if (value === undefined) continue;
      if (typeof value !== 'object' || Array.isArray(value)) this.refuse(key, value, 'an object');
      const { rope_type: ropeType, type, ...rest } = value as Record<string, unknown>;
      const kind = ropeType ?? type ?? 'default';
      if (kind !== 'default') this.refuse(`${key}.rope_type`, kind, '"default" (rotary positions without scaling)');
      new ConfigReader(rest, this.file).only('partial_rotary_factor', [1, null]);
      if (Object.hasOwn(rest, 'rope_theta')) reader = new ConfigReader(rest, this.file);
    }
    return reader.positive('rope_theta', 10_000);
  }

  private get(key: string): unknown {
    return Object.hasOwn(this.values, key) ? this.values[key] : undefined;
  }
}
