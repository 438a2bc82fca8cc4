// Bundles the page into static/, with the licences of what is in it. Run by `npm run build`, which setup.py does.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));

const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: ["src/views/app.js", "src/worker/worker.js", "src/views/app.css"],
  entryNames: "[name]",
  outdir: "static",
  bundle: true,
  format: "esm",
  minify: !process.env.UNMINIFIED,
  sourcemap: false,
  target: ["chrome111", "firefox115", "safari16.4"],
  legalComments: "none", // they are in LICENSES.txt, whole
  metafile: true,
  logLevel: "warning",
});

const packages = new Set(
  Object.keys(metafile.inputs)
    .map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1])
    .filter(Boolean),
);
const licences = [...packages].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (file === undefined) throw new Error(`${name} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
});
const rule = `\n${"-".repeat(78)}\n\n`;
writeFileSync(join(here, "static", "LICENSES.txt"), `The dashboard's scripts contain these packages.\n${rule}${licences.join(rule)}`);
