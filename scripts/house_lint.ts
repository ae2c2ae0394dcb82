/**
 * The rules of the house that the syntax shows, as a plugin of `deno lint` (deno.json names it, so editors show them
 * too). What the module graph shows is in layers.ts.
 */

const MAX_FILE_LINES = 300;
const MAX_FUNCTION_LINES = 40;
const MAX_PARAMETERS = 5;

/** Names that belong to some rooms of src only. */
const OWNED_NAMES: readonly { readonly name: RegExp; readonly rooms: RegExp; readonly why: string }[] = [
  { name: /^(Deno|Bun|Buffer|process)$/, rooms: /^(fs|cli)\//, why: "only fs/ and cli/ name a runtime" },
  { name: /^WebAssembly$/, rooms: /^(wasm\/|open\.ts$)/, why: "only wasm/ names WebAssembly" },
  { name: /^GPU/, rooms: /^webgpu\//, why: "only webgpu/ names GPU types" },
  { name: /^console$/, rooms: /^$/, why: "src writes to no console" },
];

/** Statements at top level that run nothing when the module is imported. */
const INERT_STATEMENTS = new Set([
  "ImportDeclaration",
  "ExportNamedDeclaration",
  "ExportAllDeclaration",
  "FunctionDeclaration",
  "ClassDeclaration",
  "TSInterfaceDeclaration",
  "TSTypeAliasDeclaration",
  "VariableDeclaration",
]);

type FunctionNode = Deno.lint.FunctionDeclaration | Deno.lint.FunctionExpression | Deno.lint.ArrowFunctionExpression;

/** The path inside src, or null for files elsewhere. */
function inSource(context: Deno.lint.RuleContext): string | null {
  return /\/src\/(.+)$/.exec(context.filename.replaceAll("\\", "/"))?.[1] ?? null;
}

function isPropertyName(node: Deno.lint.Identifier): boolean {
  const parent = node.parent;
  if (parent.type === "MemberExpression") return parent.property === node && !parent.computed;
  if (parent.type === "TSQualifiedName") return parent.right === node;
  return "key" in parent && parent.key === node && !("computed" in parent && parent.computed);
}

const ownedNames: Deno.lint.Rule = {
  create(context) {
    const path = inSource(context);
    if (path === null) return {};
    const foreign = OWNED_NAMES.filter(({ rooms }) => !rooms.test(path));
    return {
      Identifier(node) {
        const rule = foreign.find(({ name }) => name.test(node.name));
        if (rule && !isPropertyName(node)) context.report({ node, message: `"${node.name}": ${rule.why}` });
      },
      "ImportDeclaration, ImportExpression"(node: Deno.lint.ImportDeclaration | Deno.lint.ImportExpression) {
        const from = node.source.type === "Literal" ? String(node.source.value) : "";
        if (!from.startsWith("node:") || /^(fs|cli)\//.test(path)) return;
        context.report({ node, message: `"${from}": only fs/ and cli/ name a runtime` });
      },
    };
  },
};

const quietImport: Deno.lint.Rule = {
  create(context) {
    const path = inSource(context);
    if (path === null || path === "cli/main.ts") return {};
    return {
      Program(node) {
        for (const statement of node.body) {
          if (!INERT_STATEMENTS.has(statement.type)) {
            context.report({ node: statement, message: "No work at import: a module of src only declares" });
          }
        }
      },
      "Program > VariableDeclaration[kind='let'], Program > ExportNamedDeclaration > VariableDeclaration[kind='let']"(
        node: Deno.lint.VariableDeclaration,
      ) {
        context.report({ node, message: "No mutable state at module level" });
      },
    };
  },
};

const size: Deno.lint.Rule = {
  create(context) {
    const text = context.sourceCode.text;
    const lines = ([start, end]: [number, number]) => text.slice(start, end).split("\n").length;
    const check = (node: FunctionNode) => {
      const length = lines(node.range);
      if (length > MAX_FUNCTION_LINES) {
        context.report({ node, message: `A function of ${length} lines: ${MAX_FUNCTION_LINES} at most` });
      }
      if (node.params.length > MAX_PARAMETERS) {
        context.report({ node, message: `${node.params.length} parameters: ${MAX_PARAMETERS} at most` });
      }
    };
    return {
      Program(node) {
        const length = text.trimEnd().split("\n").length;
        if (length > MAX_FILE_LINES) {
          const message = `A file of ${length} lines: ${MAX_FILE_LINES} at most`;
          context.report({ range: [node.range[0], node.range[0] + 1], message });
        }
      },
      FunctionDeclaration: check,
      FunctionExpression: check,
      ArrowFunctionExpression: check,
    };
  },
};

const runsEverywhere: Deno.lint.Rule = {
  create(context) {
    const report = (node: Deno.lint.Node, what: string) =>
      context.report({ node, message: `${what}: Node runs .ts files by taking the types away` });
    return {
      TSEnumDeclaration: (node) => report(node, "enum"),
      TSModuleDeclaration: (node) => report(node, "namespace"),
      TSParameterProperty: (node) => report(node, "Parameter property"),
      TSTypeAssertion: (node) => report(node, "Type assertion by <>"),
      Decorator: (node) => report(node, "Decorator"),
      VariableDeclaration(node) {
        if (!/using/.test(node.kind)) return;
        context.report({ node, message: "using: Node 22 cannot parse it, and nothing turns it into older syntax" });
      },
    };
  },
};

const PLACED_ERRORS = new Set(["FormatError", "MismatchError", "LimitError", "NumericError", "IntegrityError"]);

/** Whoever catches a refusal of a file must find the place without reading the message. */
const placedErrors: Deno.lint.Rule = {
  create(context) {
    if (!/^(adapter|checkpoint|formats|fs)\//.test(inSource(context) ?? "")) return {};
    const isPlace = (property: Deno.lint.Node) =>
      property.type === "SpreadElement" ||
      (property.type === "Property" && property.key.type === "Identifier" &&
        ["file", "tensor", "field"].includes(property.key.name));
    return {
      NewExpression(node) {
        if (node.callee.type !== "Identifier" || !PLACED_ERRORS.has(node.callee.name)) return;
        const details = node.arguments[1];
        if (details && (details.type !== "ObjectExpression" || details.properties.some(isPlace))) return;
        context.report({ node, message: `${node.callee.name} without a place: file, tensor or field is wanted` });
      },
    };
  },
};

const camelCase: Deno.lint.Rule = {
  create(context) {
    // Declared names only: keys and members may be the words of a file format or of the kernels' C functions.
    const check = (node: Deno.lint.Node | Deno.lint.Parameter | null) => {
      if (node?.type !== "Identifier" || !/[a-z\d]_[a-z\d]/.test(node.name)) return;
      context.report({ node, message: `"${node.name}": names are in camelCase` });
    };
    const functionNames = (node: FunctionNode) =>
      [node.type === "ArrowFunctionExpression" ? null : node.id, ...node.params].forEach(check);
    return {
      VariableDeclarator: (node) => check(node.id),
      MethodDefinition: (node) => check(node.key),
      FunctionDeclaration: functionNames,
      FunctionExpression: functionNames,
      ArrowFunctionExpression: functionNames,
    };
  },
};

const plugin: Deno.lint.Plugin = {
  name: "house",
  rules: {
    "owned-names": ownedNames,
    "quiet-import": quietImport,
    "size": size,
    "runs-everywhere": runsEverywhere,
    "placed-errors": placedErrors,
    "camel-case": camelCase,
  },
};
export default plugin;
