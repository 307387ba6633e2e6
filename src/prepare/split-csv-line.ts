/** Splits one line of a CSV file, with quotes doubled inside quotes (RFC 4180). */
export function splitCsvLine(line: string, delimiter: string, quote: string): string[] {
  const values: string[] = [];
  let position = 0;
  for (;;) {
    let value = '';
    if (quote !== '' && line.startsWith(quote, position)) {
      position += quote.length;
      for (;;) {
        const end = line.indexOf(quote, position);
        value += line.slice(position, end === -1 ? line.length : end);
        position = end === -1 ? line.length : end + quote.length;
        if (end === -1 || !line.startsWith(quote, position)) break;
        value += quote;
        position += quote.length;
      }
    }
    const end = line.indexOf(delimiter, position);
    value += line.slice(position, end === -1 ? line.length : end);
    values.push(value);
    if (end === -1) return values;
    position = end + delimiter.length;
  }
}
