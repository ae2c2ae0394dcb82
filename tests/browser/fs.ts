/** The fixtures in a page: what is a path elsewhere is a URL of the server there. */
import type { Folder, Source } from "../../src/formats/source.ts";
import { urlFolder, urlSource } from "../../src/formats/url.ts";

export function folder(path: URL): Folder {
  return urlFolder(path);
}

export function file(path: URL): Source {
  return urlSource(path);
}
