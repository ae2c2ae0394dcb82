const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/**
 * Writes a local time as C's `strftime` does in the C locale; the directives that chat templates use.
 *
 * @param date The time.
 * @param format Text with `%Y %y %m %d %e %B %b %A %a %H %I %M %S %p %j %%`, with "-" after "%" for no leading zero.
 * @returns The text.
 * @throws {RangeError} If the format has another directive.
 */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)(.?)/g, (directive, dash: string, letter: string) => {
    const text = field(date, letter);
    if (text === null) throw new RangeError(`unknown directive "${directive}" for strftime_now`);
    return dash === "" ? text : text.replace(/^[0 ]+(?=.)/, "");
  });
}

function field(date: Date, letter: string): string | null {
  const two = (value: number) => String(value).padStart(2, "0");
  switch (letter) {
    case "Y":
      return String(date.getFullYear()).padStart(4, "0");
    case "y":
      return two(date.getFullYear() % 100);
    case "m":
      return two(date.getMonth() + 1);
    case "d":
      return two(date.getDate());
    case "e":
      return String(date.getDate()).padStart(2, " ");
    case "B":
      return MONTHS[date.getMonth()]!;
    case "b":
      return MONTHS[date.getMonth()]!.slice(0, 3);
    case "A":
      return DAYS[date.getDay()]!;
    case "a":
      return DAYS[date.getDay()]!.slice(0, 3);
    case "H":
      return two(date.getHours());
    case "I":
      return two(date.getHours() % 12 || 12);
    case "M":
      return two(date.getMinutes());
    case "S":
      return two(date.getSeconds());
    case "p":
      return date.getHours() < 12 ? "AM" : "PM";
    case "j":
      return String(dayOfYear(date)).padStart(3, "0");
    case "%":
      return "%";
    default:
      return null;
  }
}

function dayOfYear(date: Date): number {
  const year = date.getFullYear();
  return (Date.UTC(year, date.getMonth(), date.getDate()) - Date.UTC(year, 0, 0)) / 86_400_000;
}
