import { totalmem } from 'node:os';
import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import { doctorCommand, packageVersion } from '../../../src/cli/doctor.js';

function doctor(flags: { json?: boolean }): { works: boolean; output: string } {
  const stdout = new PassThrough();
  const works = doctorCommand(flags, { streams: { stdout, stderr: new PassThrough() } });
  return { works, output: String(stdout.read()) };
}

describe('doctorCommand', () => {
  it('reports what this machine has', () => {
    const { works, output } = doctor({ json: true });
    const { isa, features, availableThreads } = loadBinding().cpuInfo();
    expect(works).toBe(true);
    const report = JSON.parse(output);
    expect(report).toMatchObject({
      version: packageVersion(),
      node: process.version,
      addonError: null,
      cpu: { isa, features, threads: availableThreads },
      backends: { cpu: 'ready' },
    });
    expect(report.memory.totalBytes).toBeLessThanOrEqual(totalmem());
    expect(report.memory.availableBytes).toBeGreaterThan(0);
    expect(report.memory.availableBytes).toBeLessThanOrEqual(report.memory.totalBytes);
  });

  it('says the same to people', () => {
    const { output } = doctor({});
    expect(output).toMatch(/^limbeck {5}\d+\.\d+\.\d+, Node v\d+/);
    for (const subject of ['addon', 'processor', 'threads', 'backends', 'data files', 'memory']) {
      expect(output).toMatch(new RegExp(`^${subject} `, 'm'));
    }
  });
});
