import { describe, expect, it } from 'vitest';
import { isLoopback, parseServerOptions } from '../../../src/server/options.js';

describe('server options', () => {
  it('bind to loopback when nothing is said', () => {
    expect(parseServerOptions({ student: 's' })).toMatchObject({ host: '127.0.0.1', port: 8080 });
  });

  it.each(['0.0.0.0', '::', '10.0.0.1', 'example.org', '127.0.0.1.example.org', '::ffff:127.0.0.1'])(
    'refuse %s without keys',
    (host) => {
      expect(() => parseServerOptions({ student: 's', host })).toThrow(/no keys/);
      expect(() => parseServerOptions({ student: 's', host, keys: 'keys.json' })).not.toThrow();
    },
  );

  it.each(['127.0.0.1', '127.1.2.3', '::1', 'localhost'])('know that %s is this machine', (host) => {
    expect(isLoopback(host)).toBe(true);
  });

  it.each([
    [{ student: '' }, 'ERR_INVALID_ARGUMENT'],
    [{ student: 's', port: 70_000 }, 'ERR_INVALID_ARGUMENT'],
    [{ student: 's', prot: 1 }, 'ERR_UNKNOWN_OPTION'],
    [{ student: 's', limits: { bodyByte: 1 } }, 'ERR_UNKNOWN_OPTION'],
    [{ student: 's', redis: 'redis://127.0.0.1' }, 'ERR_INVALID_ARGUMENT'],
    [{ student: 's', data: 'd', redis: 'redis://127.0.0.1', retention: { maxEvents: 1 } }, 'ERR_INVALID_ARGUMENT'],
    [{ student: 's', data: 'd', retention: { maxAge: 1 } }, 'ERR_UNKNOWN_OPTION'],
  ])('refuse %j', (options, code) => {
    expect(() => parseServerOptions(options as never)).toThrow(expect.objectContaining({ code }));
  });
});
