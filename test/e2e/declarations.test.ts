/** The declarations of the package, as compiled (`npm test` compiles them first). */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const root = join(import.meta.dirname, '../..');

test('name no optional package: TypeScript would miss it where it is not installed', () => {
  const { optionalDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const names = Object.keys(optionalDependencies);
  const files = readdirSync(join(root, 'dist'), { recursive: true, encoding: 'utf8' });
  const declarations = files.filter((file) => file.endsWith('.d.ts'));
  expect(declarations.length).toBeGreaterThan(100);
  const naming = declarations.filter((file) => {
    const text = readFileSync(join(root, 'dist', file), 'utf8');
    return names.some((name) => text.includes(`from '${name}`) || text.includes(`import('${name}`));
  });
  expect(naming).toEqual([]);
});
