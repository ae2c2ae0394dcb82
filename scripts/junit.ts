/** Reads the JUnit reports of the three test runners: the one format that Deno, Node and Bun all write. */

/** What became of one test. */
export interface TestResult {
  readonly name: string;
  readonly outcome: "passed" | "failed" | "skipped";
  /** Why it was skipped; only Node writes it down. */
  readonly reason?: string;
}

/** The tests of a report, in its order. */
export function parseJunit(xml: string): TestResult[] {
  const results: TestResult[] = [];
  for (
    const [, attributes, body = ""] of xml.matchAll(/<testcase\b((?:[^>"]|"[^"]*")*?)(?:\/>|>([\s\S]*?)<\/testcase>)/g)
  ) {
    const name = attribute(attributes ?? "", "name");
    const skipped = /<skipped\b((?:[^>"]|"[^"]*")*)>/.exec(body);
    if (/<(?:failure|error)\b/.test(body)) results.push({ name, outcome: "failed" });
    else if (skipped) results.push({ name, outcome: "skipped", reason: attribute(skipped[1] ?? "", "message") });
    else results.push({ name, outcome: "passed" });
  }
  return results;
}

function attribute(attributes: string, name: string): string {
  const text = new RegExp(`\\b${name}="([^"]*)"`).exec(attributes)?.[1] ?? "";
  const entities: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", "#10": "\n" };
  // &amp; first: Node escapes quotes twice (&amp;quot;).
  return text.replaceAll("&amp;", "&").replace(/&(lt|gt|quot|apos|#10);/g, (_, entity) => entities[entity] ?? "");
}
