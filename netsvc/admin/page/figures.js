// Writes numbers in a few characters.

const scaled = (value, powers) => {
  let power = 0;
  while (value >= 999.5 && power < powers.length - 1) { value /= 1000; power += 1; }
  return [value.toFixed(power === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2), powers[power]];
};
const two = (value) => String(Math.floor(value)).padStart(2, "0");

export const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB", "PB", "EB"]).join(" ");
export const count = (value) => value < 9999999.5 ? Math.round(value).toLocaleString("en") : scaled(value, ["", "k", "M", "G", "T", "P"]).join("");
export const pace = (value) => value > 0 && value < 9.95 ? value.toFixed(1) : count(value);
export const delay = (seconds) => seconds < 0.9995 ? `${(seconds * 1000).toFixed(seconds < 0.00995 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;

export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${two(s % 3600 / 60)}m`;
  const days = Math.floor(s / 86400);
  return days < 100 ? `${days}d${two(s % 86400 / 3600)}h` : `${days}d`;
}
